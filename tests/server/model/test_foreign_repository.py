"""Model repositories made for Triton: without manifest, with or without config.pbtxt, probabilities or logits."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cnnserve.batching.instance import ModelInstance
from cnnserve.batching.row_check import RowKind
from cnnserve.datatypes import Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.loader import OpenVersion
from cnnserve.model_config import image_settings
from cnnserve.repository import folders
from cnnserve.wire import classifier_pb2 as c
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip, encoded, floats, strings, tensor, with_parameter
from support import CLASSES, HANG_S, free_onnx, half_free_onnx, open_version, picture, png, serving, tiny_onnx

GREY = {"color": "L", "resize": {"mode": "exact", "size": [8, 8]}, "mean": [0], "std": [1], "normalize": "graph"}
LABELLED = 'output { name: "probabilities" data_type: TYPE_FP32 dims: 3 label_filename: "names.txt" }'


def image(**changes: Any) -> str:
    text = json.dumps(GREY | changes).replace('"', '\\"')
    return f'parameters {{ key: "cnnserve.image" value {{ string_value: "{text}" }} }}'


def write(root: Path, config: str | None = None, model: bytes | None = None, file: str = "model.onnx") -> Path:
    version = root / "m" / "1"
    version.mkdir(parents=True)
    (version / file).write_bytes(model or tiny_onnx())
    (root / "m" / "names.txt").write_text("\n".join(CLASSES) + "\n")
    if config is not None:
        (root / "m" / "config.pbtxt").write_text(config)
    return root


def opened(root: Path) -> OpenVersion:
    return open_version(folders.find(root, "m"), 1)


@pytest.mark.parametrize("softmax", [True, False])
def test_without_a_config_rows_are_looked_at(tmp_path: Path, softmax: bool) -> None:
    info = opened(write(tmp_path, model=tiny_onnx(softmax=softmax))).info
    assert info.probe is not None
    assert info.class_count == 3
    assert (info.rows.kind is RowKind.SOFTMAX, info.rows.applies_softmax) == (softmax, not softmax)
    assert info.config.parameters["cnnserve.verified"].string_value == "false"
    said = "rows are probabilities" if softmax else "not probabilities, so Classify applies a softmax"
    assert said in str(info.probe)


def test_free_sizes_leave_nothing_to_run(tmp_path: Path) -> None:
    info = opened(write(tmp_path, model=free_onnx())).info
    assert "not run, because an input size is free" in str(info.probe)


def test_a_size_that_a_free_model_cannot_run_is_the_clients_error(tmp_path: Path) -> None:
    write(tmp_path / "r", model=half_free_onnx())
    good = np.ones((1, 3, 8, 8), np.float32)
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        code, details = oip.fails("ModelInfer", floating(np.ones((1, 3, 9, 8), np.float32)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "ONNX Runtime" in details
        assert "MatMul" in details
        assert floats(oip("ModelInfer", floating(good)))[0].tolist() == [192] * 3
        assert "ERROR" not in server.log
        assert "Traceback" not in server.log


def floating(array: np.ndarray) -> o.ModelInferRequest:
    request = o.ModelInferRequest(model_name="m", raw_input_contents=[array.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=array.shape)
    return request


@pytest.mark.parametrize("names", [["dark"], [*CLASSES, "none"]])
def test_other_labels_than_classes_keep_no_foreign_model_from_loading(
    tmp_path: Path, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "r", f"max_batch_size: 4 {LABELLED} {image()}", tiny_onnx(softmax=False))
    (tmp_path / "r" / "m" / "names.txt").write_text("\n".join(names) + "\n")
    assert opened(tmp_path / "r").info.labels == tuple(names)
    assert f"there are {len(names)} labels for 3 classes" in caplog.text
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        classify = oip.channel.unary_unary(
            "/cnnserve.v1.Classifier/Classify", c.ClassifyRequest.SerializeToString, c.ClassifyResponse.FromString
        )
        [result] = classify(
            c.ClassifyRequest(model="m", images=[c.Image(encoded=picture("left"))], top_k=3), timeout=HANG_S
        ).results
        # A class without a line in the file has no label.
        known = dict(enumerate(names))
        assert [item.label for item in result.classes] == [known.get(item.index, "") for item in result.classes]


def test_a_stated_image_makes_classify_work(tmp_path: Path) -> None:
    config = f"max_batch_size: 4 {LABELLED} {image()}"
    write(tmp_path / "r", config, tiny_onnx(softmax=False))
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        classify = oip.channel.unary_unary(
            "/cnnserve.v1.Classifier/Classify", c.ClassifyRequest.SerializeToString, c.ClassifyResponse.FromString
        )
        images = [c.Image(encoded=picture(kind)) for kind in ("left", "dark")]
        results = classify(c.ClassifyRequest(model="m", images=images, top_k=3), timeout=HANG_S).results
        assert [result.classes[0].label for result in results] == ["left", "dark"]
        assert sum(item.probability for item in results[0].classes) == pytest.approx(1, abs=1e-5)
        # The tensors of the Open Inference Protocol are still those of the model.
        logits = floats(oip("ModelInfer", encoded(picture("left"), model="m")))
        assert logits.sum() != pytest.approx(1, abs=0.1)
        wanted = tensor(model="m", outputs=[{"name": "probabilities"}])
        with_parameter(wanted.outputs[0], "classification", int64_param=1)
        assert strings(oip("ModelInfer", wanted)) == [f"{logits.max():f}:1:left"]


def test_a_config_states_letterbox_and_padding(tmp_path: Path) -> None:
    resize = {"mode": "letterbox", "size": [8, 8], "interpolation": "area", "library": "opencv", "antialias": False}
    write(tmp_path, image(resize=resize, pad={"color": [200], "align": "start"}))
    info = opened(tmp_path).info
    stated = image_settings.read(info.config, info.settings)
    assert stated is not None
    row = Preprocessor(*stated).encoded(png(np.zeros((4, 8), np.uint8)))
    assert (row[:4] == 0).all()
    assert (row[4:] == 200).all()


QUICKSTART = """
name: "m"
platform: "onnxruntime_onnx"
max_batch_size : 0
input [
  {
    name: "data_0"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 8, 8 ]
    reshape { shape: [ 1, 3, 8, 8 ] }
  }
]
output [
  {
    name: "fc6_1"
    data_type: TYPE_FP32
    dims: [ 3 ]
    reshape { shape: [ 1, 3, 1, 1 ] }
    label_filename: "names.txt"
  }
]
"""


def quickstart_onnx() -> bytes:
    """Returns a file with a fixed batch of one, NCHW, whose three logits have a height and a width.

    The logits are the amounts of red, green and blue in the image.
    """
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["data_0"], ["fc6_1"])],
        "quickstart",
        [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("fc6_1", TensorProto.FLOAT, [1, 3, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 7)], ir_version=3)
    data: bytes = model.SerializeToString()
    return data


def test_the_model_of_tritons_quickstart(tmp_path: Path) -> None:
    """The config is that of the quickstart except for name and sizes: a format of three dims, and a reshape to four."""
    rgb = {"color": "RGB", "resize": {"mode": "exact", "size": [8, 8]}, "mean": [0] * 3, "std": [1] * 3}
    write(tmp_path / "r", QUICKSTART + image(**rgb, normalize="host"), quickstart_onnx())
    pixels = np.zeros((3, 8, 8), np.float32)
    pixels[1] = 2
    request = o.ModelInferRequest(model_name="m", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="data_0", datatype="FP32", shape=[3, 8, 8])
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        metadata = oip("ModelMetadata", o.ModelMetadataRequest(name="m"))
        assert (list(metadata.inputs[0].shape), list(metadata.outputs[0].shape)) == ([3, 8, 8], [3])
        answer = oip("ModelInfer", request)
        assert (list(answer.outputs[0].shape), floats(answer).tolist()) == ([3], [0, 2, 0])
        with_parameter(request.outputs.add(name="fc6_1"), "classification", int64_param=1)
        assert strings(oip("ModelInfer", request)) == ["2.000000:1:left"]
        # If the config states the preprocessing, clients can send image files, too.
        blue = np.zeros((8, 8, 3), np.uint8)
        blue[..., 2] = 255
        files = encoded(png(blue), model="m")
        files.inputs[0].name = "data_0"
        assert floats(oip("ModelInfer", files)).tolist() == [0, 0, 1]


def test_classify_takes_the_output_with_the_labels(tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_onnx())
    model.graph.output.insert(0, helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 64]))
    write(tmp_path / "r", f"max_batch_size: 8 {LABELLED} {image()}", model.SerializeToString())
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        classify = oip.channel.unary_unary(
            "/cnnserve.v1.Classifier/Classify",
            request_serializer=c.ClassifyRequest.SerializeToString,
            response_deserializer=c.ClassifyResponse.FromString,
        )
        request = c.ClassifyRequest(model="m", top_k=9, images=[{"encoded": picture(kind)} for kind in CLASSES])
        results = classify(request, timeout=HANG_S).results
    assert [result.classes[0].label for result in results] == list(CLASSES)
    assert [len(result.classes) for result in results] == [3, 3, 3]


def test_without_a_stated_image_classify_says_what_is_missing(tmp_path: Path) -> None:
    write(tmp_path / "r")
    with serving(tmp_path / "log", tmp_path / "r") as server, Oip(server.address) as oip:
        classify = oip.channel.unary_unary("/cnnserve.v1.Classifier/Classify", c.ClassifyRequest.SerializeToString)
        with pytest.raises(grpc.RpcError) as caught:
            classify(c.ClassifyRequest(model="m", images=[c.Image(encoded=picture("left"))]), timeout=HANG_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "cnnserve.image" in caught.value.details()


INPUT = 'input { name: "image" data_type: TYPE_UINT8 dims: [8, 8, 1] %s }'


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (image(color="CMYK"), "cnnserve.image: color is 'CMYK'"),
        (image(crop=[7, 7]), r"cnnserve.image: preprocessing gives images of size \[7, 7\], the input needs \[8, 8\]"),
        (image(pad={"color": [0, 0, 0]}), r"pad.color is \[0.0, 0.0, 0.0\], expected 1 value"),
        (image(resize={"mode": "fit", "size": [8]}), "gives images of no fixed size"),
        (image(normalize="host"), "normalize 'host' does not fit input 'image' of type UINT8; use 'graph' or 'none'"),
        (image(means=[0]), "there is no field 'means'; known are color"),
        ('parameters { key: "cnnserve.image" value { string_value: "RGB" } }', "it is not JSON"),
        ('parameters { key: "cnnserve.image" value { string_value: "[]" } }', "holds a list, expected a JSON object"),
        (f"max_batch_size: 1 {INPUT % 'format: FORMAT_NCHW'} {image()}", "color is L, which does not give the 8"),
        ('input { name: "image" data_type: TYPE_UINT8 dims: [-1,8,8,1] format: FORMAT_NHWC }', None),
        (f"max_batch_size: 4 {INPUT % 'optional: true'}", "has optional, which is not supported"),
        (f"max_batch_size: 4 {LABELLED.replace('dims', 'is_shape_tensor: true dims')}", "has is_shape_tensor"),
        ("sequence_batching { }", "sequence_batching is not supported by this server"),
    ],
)
def test_what_a_config_may_say_of_tensors_and_images(tmp_path: Path, config: str, said: str | None) -> None:
    root = write(tmp_path, config)
    if said is None:
        assert opened(root).info.settings.input.dims == (-1, 8, 8, 1)
        return
    with pytest.raises(ModelLoadFailed, match=said):
        opened(root)


def test_where_the_channels_are_has_to_be_clear(tmp_path: Path) -> None:
    model = tiny_onnx(datatype=TensorProto.FLOAT)
    stated = image(normalize="none")
    (tmp_path / "a").mkdir()
    version = opened(write(tmp_path / "a", stated, model))
    assert version.preprocessor is not None
    assert version.preprocessor.row(picture("left")).shape == (8, 8, 1)
    open_ended = f'max_batch_size: 1 input {{ name: "image" data_type: TYPE_FP32 dims: [3, 8, 3] }} {stated}'
    (tmp_path / "b").mkdir()
    with pytest.raises(ModelLoadFailed, match="ONNX file has"):
        opened(write(tmp_path / "b", open_ended, model))


def external(folder: Path) -> None:
    """Writes the tiny model with its weights in a separate file."""
    folder.mkdir(parents=True)
    model = onnx.load_from_string(tiny_onnx())
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=200)


@pytest.mark.parametrize(
    ("config", "name"), [(None, "model.onnx"), ('default_model_filename: "net"', "net"), (None, "")]
)
def test_a_model_of_several_files(tmp_path: Path, config: str | None, name: str) -> None:
    """The files are in a folder with the name of the model file, as in Triton, or all in the version folder."""
    version = tmp_path / "m" / "1"
    external(version / name)
    if config is not None:
        (tmp_path / "m" / "config.pbtxt").write_text(config)
    assert (version / name / "model.data").stat().st_size >= 64 * 3 * 4
    info = opened(tmp_path).info
    assert info.probe is not None
    assert info.probe.rows.kind is RowKind.SOFTMAX
    assert info.config.default_model_filename == (name or "model.onnx")
    folder = folders.find(tmp_path, "m")
    before = folders.fingerprint(folder, 1)
    os.utime(version / name / "model.data", ns=(1, 1))
    assert folders.fingerprint(folder, 1) != before


def test_data_that_is_cut_off_is_named(tmp_path: Path) -> None:
    """Before, clients got the name of a C++ source file and of a function in it."""
    version = tmp_path / "m" / "1"
    external(version)
    os.truncate(version / "model.data", 100)
    with pytest.raises(ModelLoadFailed) as caught:
        opened(tmp_path)
    said = "its external data is cut off: model.data has 100 bytes; copy the files of the version again"
    assert str(caught.value) == f"model.onnx cannot be loaded: {said}"


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "m" / "1" / "model.onnx").mkdir(parents=True)
    with pytest.raises(ModelLoadFailed, match=r"file model\.onnx/model\.onnx is missing from the version folder"):
        opened(tmp_path)


def test_another_file_name_and_labels_of_the_folder(tmp_path: Path) -> None:
    config = f'default_model_filename: "net.onnx" max_batch_size: 4 {LABELLED}'
    info = opened(write(tmp_path, config, file="net.onnx")).info
    assert (info.labels, info.config.default_model_filename) == (CLASSES, "net.onnx")


WARMUP = """max_batch_size: 4
model_warmup {{ name: "w" batch_size: {size} count: {count} inputs {{ key: "{name}" value {{
  data_type: {type} dims: [8, 8, 1] {data} }} }} }}"""
GOOD = {"size": 3, "count": 2, "name": "image", "type": "TYPE_UINT8", "data": "random_data: true"}


@pytest.mark.parametrize("data", ["random_data: true", "zero_data: true", 'input_data_file: "rows.bin"'])
def test_warmup_runs_before_the_first_request(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, WARMUP.format(**GOOD | {"data": data}))
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "rows.bin").write_bytes(bytes(64))
    seen: list[int] = []
    run = ModelInstance.run

    def seeing(self: ModelInstance, parts: Sequence[Rows], limit_s: float | None = None) -> list[Rows]:
        seen.append(len(parts[0]))
        return run(self, parts, limit_s)

    monkeypatch.setattr(ModelInstance, "run", seeing)
    opened(root)
    assert seen[-2:] == [3, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": 5}, 'model_warmup "w": batch_size is 5, the limit is 4'),
        ({"name": "data"}, 'inputs are data, expected "image"'),
        ({"type": "TYPE_FP32"}, "data_type is TYPE_FP32, expected TYPE_UINT8"),
        ({"data": ""}, "set zero_data, random_data or input_data_file"),
        ({"data": 'input_data_file: "gone"'}, "'gone' cannot be read: No such file"),
        ({"data": 'input_data_file: "../names.txt"'}, "outside the model's warmup folder"),
        ({"data": 'input_data_file: "short"'}, "has 3 bytes, expected 64"),
        ({"count": 10000}, "count is 10000"),
    ],
)
def test_invalid_warmup_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    root = write(tmp_path, WARMUP.format(**GOOD | changes))
    (root / "m" / "warmup").mkdir()
    (root / "m" / "warmup" / "short").write_bytes(b"abc")
    with pytest.raises(ModelLoadFailed, match=said):
        opened(root)


def test_what_modelconfig_reports_may_come_back(tmp_path: Path) -> None:
    config = opened(write(tmp_path, f"max_batch_size: 4 {LABELLED}")).info.config
    (tmp_path / "m" / "config.pbtxt").write_text(str(config))
    again = opened(tmp_path).info.config
    assert again == config
    assert np.array_equal(again.output[0].dims, [3])
