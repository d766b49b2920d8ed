"""`infer` of both clients: numpy arrays in and out, with a real server."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnnserve_client as cc
from cnnserve.wire import open_inference_pb2 as pb
from cnnserve_client import open_inference
from support import CLASSES, SIDE, RunningServer, picture, serving, write_version

LEFT = np.zeros((1, SIDE, SIDE, 1), np.uint8)
LEFT[:, :, : SIDE // 2] = 255


def test_an_array_gives_the_probabilities_of_the_image(tiny_server: RunningServer, ask):
    result = ask(tiny_server.address, "infer", {"image": LEFT}, model="tiny")
    image = ask(tiny_server.address, "classify", picture("left"), model="tiny")
    assert (result.model, result.version, list(result.outputs)) == ("tiny", "1", ["probabilities"])
    row = result.outputs["probabilities"]
    assert (row.dtype, row.shape) == (np.dtype("float32"), (1, len(CLASSES)))
    assert row[0].argmax() == CLASSES.index("left")
    for found in image.results[0].classes:
        assert row[0, found.index] == pytest.approx(found.probability, abs=1e-6)
    # The array is the caller's.
    row[:] = 0


@pytest.mark.parametrize(
    "array", [LEFT.tolist(), np.repeat(LEFT, 3, 0)[::-1], np.asfortranarray(LEFT), LEFT.astype(np.int64).astype(">u1")]
)
def test_any_layout_of_an_array_is_sent_row_by_row(tiny_server: RunningServer, ask, array):
    if isinstance(array, list):
        array = np.array(array, np.uint8)
    result = ask(tiny_server.address, "infer", {"image": array}, model="tiny", outputs=["probabilities"])
    assert (result.outputs["probabilities"].argmax(1) == CLASSES.index("left")).all()


def test_bytes_are_images_if_the_model_takes_them(tiny_server: RunningServer, ask):
    images = np.array([[picture("left")], [picture("bright")]], object)
    rows = ask(tiny_server.address, "infer", {"image": images}, model="tiny", version="1").outputs["probabilities"]
    assert list(rows.argmax(1)) == [CLASSES.index("left"), CLASSES.index("bright")]


@pytest.mark.parametrize(
    ("tensors", "more", "said"),
    [
        ({}, {}, "tensors must be a dict"),
        (LEFT, {}, "tensors must be a dict"),
        ({5: LEFT}, {}, "tensors is 5"),
        ({"image": LEFT.astype(complex)}, {}, "tensor 'image' has the type complex128: expected one of BOOL, UINT8"),
        ({"image": np.array([[1, "a"]], object)}, {}, "tensor 'image' has an item of type int"),
        ({"image": LEFT.astype(np.float32)}, {}, "has type FP32, expected UINT8"),
        ({"image": LEFT[0]}, {}, "has shape [8, 8, 1]"),
        ({"pixels": LEFT}, {}, "has input 'pixels'"),
        ({"image": LEFT}, {"outputs": ["x"]}, "asks for output 'x'"),
        ({"image": LEFT}, {"outputs": [5]}, "outputs is 5"),
    ],
)
def test_wrong_arguments_are_named(tiny_server: RunningServer, ask, tensors, more, said):
    with pytest.raises(cc.InvalidInputError) as caught:
        ask(tiny_server.address, "infer", tensors, model="tiny", **more)
    assert said in str(caught.value)


def test_an_unknown_model_is_not_found(tiny_server: RunningServer, ask):
    with pytest.raises(cc.NotFoundError, match="model 'nobody'"):
        ask(tiny_server.address, "infer", {"image": LEFT}, model="nobody")


def test_the_limits_of_both_sides_say_what_to_do(tmp_path: Path, ask):
    write_version(tmp_path / "models" / "tiny" / "1")
    rows = np.zeros((20_000, SIDE, SIDE, 1), np.uint8)
    with serving(tmp_path / "log", tmp_path / "models", "--max-message-mib", "1") as server:
        with pytest.raises(cc.InvalidInputError, match="the client sends at most 1048576: send fewer rows, or raise"):
            ask(server.address, "infer", {"image": rows}, model="tiny", limits={"max_message_mib": 1})
        with pytest.raises(cc.ResourceExhaustedError, match="send fewer images or rows at once, or raise"):
            ask(server.address, "infer", {"image": rows}, model="tiny")


@pytest.mark.parametrize("name", ["ModelInferRequest", "ModelInferResponse"])
def test_the_fields_are_those_of_the_protocol(name: str):
    own = open_inference.REQUEST if name.endswith("Request") else open_inference.RESPONSE
    official = getattr(pb, name).DESCRIPTOR.fields_by_name
    for field in own.DESCRIPTOR.fields:
        assert (field.number, field.type) == (official[field.name].number, official[field.name].type)
        assert field.is_repeated == official[field.name].is_repeated
        if field.message_type is not None:
            inner = official[field.name].message_type.fields_by_name
            for part in field.message_type.fields:
                assert (part.number, part.type) == (inner[part.name].number, inner[part.name].type)


def test_another_package_may_define_the_same_messages():
    """As tritonclient does: protobuf refuses a second file with the same names in one pool."""
    program = """
import cnnserve_client
from cnnserve_client import Client
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="grpc_service.proto", package="inference", syntax="proto3")
for name in ("ModelInferRequest", "ModelInferResponse", "Tensor", "Output"):
    file.message_type.add(name=name).field.add(name="other", number=1, type=8, label=1)
descriptor_pool.Default().Add(file)
assert descriptor_pool.Default().FindMessageTypeByName("inference.ModelInferRequest").fields[0].name == "other"
from cnnserve_client import open_inference
message = open_inference.request({"x": np.zeros(3, np.float32)}, (), 1000, model="m", version="")
print(open_inference.REQUEST.FromString(message.SerializeToString()).inputs[0].datatype)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "FP32\n"), ended.stderr


def test_responses_that_do_not_fit_are_errors():
    for raw, datatype in [(b"123", "FP32"), (b"12", "NEW"), (b"\x05\0\0\0a", "BYTES")]:
        response = pb.ModelInferResponse(raw_output_contents=[raw])
        response.outputs.add(name="y", datatype=datatype, shape=[1])
        with pytest.raises(cc.InternalError, match="output 'y' of type"):
            open_inference.result(open_inference.RESPONSE.FromString(response.SerializeToString()))
    two = pb.ModelInferResponse(raw_output_contents=[b""])
    with pytest.raises(cc.InternalError, match="0 outputs with the data of 1"):
        open_inference.result(open_inference.RESPONSE.FromString(two.SerializeToString()))
