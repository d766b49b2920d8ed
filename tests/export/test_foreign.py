import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from cnnserve.repository.manifest import TensorInfo
from cnnserve_export import external_data, foreign
from cnnserve_export.errors import ExportError
from support import tiny_onnx

Change = Callable[[ModelProto], object]


def tiny() -> ModelProto:
    return onnx.load_model_from_string(tiny_onnx())


def written(path: Path, change: Change) -> Path:
    model = tiny()
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def test_what_a_file_says(tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", lambda model: setattr(model, "producer_name", "by hand"))
    read = foreign.read(path)
    assert (read.input, read.fixed_batch) == (TensorInfo("image", "UINT8", (8, 8, 1), "NHWC"), None)
    assert (read.opset, read.precision, read.data) == (18, "fp32", path.read_bytes())
    assert (read.origin["source"], read.origin["producer"]) == ("import", "by hand")
    path.write_bytes(tiny_onnx(batch=2))
    assert foreign.read(path).fixed_batch == 2
    path.write_bytes(tiny_onnx(batch=1025))
    with pytest.raises(ExportError, match=r"shape \[1025, 8, 8, 1\]; the largest batch size is 1024"):
        foreign.read(path)


def shape(*sizes: int | str) -> Change:
    def change(model: ModelProto) -> None:
        value = helper.make_tensor_value_info("image", TensorProto.UINT8, sizes)
        model.graph.input[0].CopyFrom(value)

    return change


def second_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3]))


def second_input(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [2]))


def of_maps(model: ModelProto) -> None:
    maps = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output[0].CopyFrom(helper.make_value_info("z", helper.make_sequence_type_proto(maps)))


def datatype(elem_type: int) -> Change:
    return lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", elem_type)


def foreign_operator(model: ModelProto) -> None:
    model.graph.node[2].domain, model.graph.node[2].op_type = "my.ops", "Swirl"


def training(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("BatchNormalization", ["a"] * 5, ["b"], name="bn", training_mode=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            second_output,
            "has 2 outputs ('probabilities', 'logits'), 2 of them with floats; choose",
        ),
        (second_input, "has 2 inputs ('image', 'size'), a classifier has one"),
        (
            lambda model: model.graph.ClearField("output"),
            "has 0 outputs (none), 0 of them with floats; import",
        ),
        (of_maps, "the output 'z' is a sequence, not a tensor; if skl2onnx made the file, pass it options="),
        (datatype(TensorProto.DOUBLE), "the input 'image' is double; export the network with float or uint8"),
        (shape("n", 8, 8), "has shape ['?', 8, 8]; give a network for images (N, C, H, W) or (N, H, W, C)"),
        (shape("n", "h", "w", "c"), "which does not show where its 1 or 3 channels are; fix that dimension: python -m"),
        (shape("n", 3, 8, 3), "which does not show where its 1 or 3 channels are"),
        (foreign_operator, "uses operator 'Swirl' of domain 'my.ops', which ONNX Runtime does not have"),
        (training, "the node 'bn' (BatchNormalization) is in training mode"),
    ],
)
def test_what_is_no_image_classifier(change: Change, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=re.escape(message)):
        foreign.read(written(tmp_path / "m.onnx", change))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "m.onnx is empty (0 bytes)"),
        (b"hello, world\n", "is not an ONNX file, or not complete (13 bytes beginning with b'hello, world"),
        (b"version https://git-lfs.github.com/spec/v1\n", "m.onnx is a Git LFS pointer, not the file itself"),
        (tiny_onnx()[:900], "is not an ONNX file, or not complete (900 bytes"),
    ],
)
def test_what_is_no_onnx_file(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ExportError, match=re.escape(message)):
        foreign.read(tmp_path / "m.onnx")


def test_other_files_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="is a zip archive, like PyTorch's checkpoints; pass"):
        foreign.read(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"none\.onnx cannot be read: No such file"):
        foreign.read(tmp_path / "none.onnx")
    with pytest.raises(ExportError, match="cannot be read: Is a directory"):
        foreign.read(tmp_path)


def test_a_function_of_the_file_is_no_foreign_operator(tmp_path: Path) -> None:
    def change(model: ModelProto) -> None:
        foreign_operator(model)
        body = [helper.make_node("Identity", ["x"], ["y"])]
        imports = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("my.ops", "Swirl", ["x"], ["y"], body, imports))

    assert foreign.read(written(tmp_path / "m.onnx", change)).opset == 18


# External data


def outside(folder: Path, location: str, **entries: object) -> Path:
    """Writes the tiny model to `folder`, with its weights in `location`."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return written(folder / "m.onnx", change)


WEIGHTS = numpy_helper.to_array(tiny().graph.initializer[0]).tobytes()


@pytest.fixture(name="folder")
def folder_fixture(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    (folder / "w.bin").write_bytes(b"12345678" + WEIGHTS)
    (folder / "sub" / "w.bin").write_bytes(WEIGHTS)
    (tmp_path / "secret").write_bytes(WEIGHTS)
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "links").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize(
    ("location", "entries"),
    [
        ("w.bin", {"offset": 8}),
        ("w.bin", {"offset": 8, "length": len(WEIGHTS)}),
        ("sub/w.bin", {}),
        ("./sub/w.bin", {"length": len(WEIGHTS)}),
    ],
)
def test_data_in_the_files_own_folder_is_embedded(location: str, entries: dict[str, int], folder: Path) -> None:
    read = foreign.read(outside(folder, location, **entries))
    assert read.model == tiny()
    np.testing.assert_equal(onnx.load_model_from_string(read.data), tiny())
    assert [key for key in read.origin if key.startswith("external data")] == [f"external data {location}"]


@pytest.mark.parametrize(
    ("location", "entries", "message"),
    [
        ("../secret", {}, "'../secret', leads out of the ONNX file's folder"),
        ("sub/../../secret", {}, "leads out of the ONNX file's folder"),
        ("/etc/passwd", {}, "'/etc/passwd', is not a path inside the ONNX file's folder"),
        ("C:/secret", {}, "is not a path inside"),
        ("..\\secret", {}, "is not a path inside"),
        ("", {}, "'', names no file"),
        ("link", {}, "'link', is a symbolic link; put the file itself there"),
        ("links/secret", {}, "'links/secret', is a symbolic link"),
        ("sub", {}, "'sub', is not a regular file"),
        ("pipe", {}, "'pipe', is not a regular file"),
        ("none.bin", {}, "'none.bin', cannot be read: No such file or directory"),
        ("w.bin/x", {}, "cannot be read: Not a directory"),
        ("w.bin", {"offset": "x"}, "has offset 'x', not a number"),
        ("w.bin", {"offset": 9, "length": len(WEIGHTS)}, "but w.bin has 776 bytes; copy the whole file"),
        ("w.bin", {"offset": 10**18}, "but w.bin has 776 bytes; copy the whole file"),
    ],
)
def test_data_elsewhere_is_refused(location: str, entries: dict[str, object], message: str, folder: Path) -> None:
    with pytest.raises(ExportError, match=re.escape(message)):
        foreign.read(outside(folder, location, **entries))


def test_data_in_a_nested_graph_is_looked_at_too(folder: Path) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    model = tiny()
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    with pytest.raises(ExportError, match="'/etc/passwd', is not a path inside"):
        external_data.embed(model, folder)


def test_more_than_one_file_can_hold_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "MAX_BYTES", 1000)
    with pytest.raises(ExportError, match="have 2 GiB or more"):
        foreign.read(outside(folder, "sub/w.bin"))
