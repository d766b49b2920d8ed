"""Kind: files that no digest covers. Every file to which the graph refers is named by the manifest, or nothing is."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve.model import loader
from cnnserve.repository import folders
from cnnserve.repository.show import show
from spoiling import field, refusal
from support import open_version, rewrite_manifest, tiny_onnx, write_version

DATA = "model.data"


def moved_out(tensor: TensorProto, folder: Path, location: str = DATA) -> None:
    """Moves the values of a tensor into a file of their own."""
    values = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(values)))):
        tensor.external_data.add(key=key, value=value)
    path = folder / location
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(values)


def weights_outside(folder: Path, location: str = DATA) -> None:
    """The weights of the tiny network move into a file."""
    model = onnx.load_from_string(tiny_onnx())
    moved_out(next(tensor for tensor in model.graph.initializer if tensor.name == "weights"), folder, location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def as_constant(folder: Path) -> None:
    """The weights are the value of a Constant node, in a file."""
    model = onnx.load_from_string(tiny_onnx())
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    model.graph.initializer.remove(weights)
    moved_out(weights, folder)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["weights"], value=weights))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def bias_of(folder: Path) -> tuple[onnx.ModelProto, TensorProto]:
    model = onnx.load_from_string(tiny_onnx())
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    model.graph.initializer.remove(bias)
    moved_out(bias, folder)
    return model, bias


def in_a_branch(folder: Path) -> None:
    """The bias is an initialiser of both branches of an If."""
    model, bias = bias_of(folder)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["bias"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [3])],
        [bias],
    )
    yes = numpy_helper.from_array(np.array(True), "yes")
    model.graph.initializer.append(yes)
    model.graph.node.insert(0, helper.make_node("If", ["yes"], ["bias"], then_branch=graph, else_branch=graph))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def in_a_function(folder: Path) -> None:
    """The bias is a constant in a function of the model."""
    model, bias = bias_of(folder)
    constant = helper.make_node("Constant", [], ["value"], value=bias)
    function = helper.make_function("local", "Bias", [], ["value"], [constant], [helper.make_opsetid("", 18)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.insert(0, helper.make_node("Bias", [], ["bias"], domain="local"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def sparse(folder: Path) -> None:
    """The bias is a sparse initialiser whose values are in a file."""
    model, bias = bias_of(folder)
    indices = numpy_helper.from_array(np.arange(3, dtype=np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(bias, indices, [3]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return write_version(tmp_path / "m" / "1")


def named(folder: Path, name: str) -> None:
    """The manifest names this file, too."""
    field(f"files/{name}", {})(folder)
    rewrite_manifest(folder)


SERVED: list[Callable[[Path], None]] = [weights_outside, as_constant]
EVERYWHERE: list[Callable[[Path], None]] = [*SERVED, in_a_branch, in_a_function, sparse]


@pytest.mark.parametrize("move", EVERYWHERE)
def test_external_data_that_the_manifest_does_not_name_is_refused(
    version: Path, move: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    move(version)
    rewrite_manifest(version)
    said = (
        "model.onnx refers to the file 'model.data', which the manifest does not name; import the model with cnnserve "
        "import, which embeds its data"
    )
    assert refusal(version) == said
    assert show([str(version)]) == 1
    assert f"altered: {said}" in capsys.readouterr().out


@pytest.mark.parametrize("move", SERVED)
def test_external_data_is_served_if_its_digest_matches(
    version: Path, move: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    move(version)
    named(version, DATA)
    assert refusal(version) == ""
    assert show([str(version)]) == 0
    scaled = np.frombuffer((version / DATA).read_bytes(), np.float32) * np.float32(1.0001)
    (version / DATA).write_bytes(scaled.tobytes())
    assert "file model.data was altered" in refusal(version)
    assert show([str(version)]) == 1
    assert "altered: file model.data was altered" in capsys.readouterr().out


@pytest.mark.parametrize("move", [in_a_branch, in_a_function, sparse])
def test_where_onnx_runtime_takes_no_data_from_memory_the_version_is_refused(
    version: Path, move: Callable[[Path], None]
) -> None:
    move(version)
    named(version, DATA)
    assert "for a tensor of a nested graph, of a function, or a sparse one, which is not supported" in refusal(version)
    (version / "manifest.json").unlink()
    assert "which is not supported; import the model with cnnserve import" in refusal(version)


def test_external_data_that_changes_after_it_was_hashed_is_not_loaded(
    version: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_outside(version)
    named(version, DATA)
    opening = loader.open_sessions

    def change(*arguments: object) -> object:
        # The self-test would fail with these.
        (version / DATA).write_bytes(bytes((version / DATA).stat().st_size))
        return opening(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "open_sessions", change)
    assert refusal(version) == ""
    assert "file model.data was altered" in refusal(version)


PATHS = {
    "../model.data": "which is not a file beside it",
    "../../secret.data": "which is not a file beside it",
    "sub/../../model.data": "which is not a file beside it",
    "/etc/passwd": "which is not a file beside it",
    "": "which is not a file beside it",
    "sub\\model.data": "which is not a file beside it",
    "*/_ORT_MEM_ADDR_/*": "which the manifest does not name",
    "sub/model.data": "which the manifest does not name",
}


@pytest.mark.parametrize("location", PATHS)
def test_a_path_out_of_the_folder_is_refused(version: Path, location: str) -> None:
    model = onnx.load_from_string(tiny_onnx())
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "weights")
    moved_out(tensor, version)
    (location_entry,) = [entry for entry in tensor.external_data if entry.key == "location"]
    location_entry.value = location
    for target in (version.parent / DATA, version.parent.parent / "secret.data", version / "sub" / DATA):
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(version / DATA, target)
    (version / "model.onnx").write_bytes(model.SerializeToString())
    named(version, DATA)
    assert PATHS[location] in refusal(version)


@pytest.mark.parametrize("location", ["sub/model.data", "./model.data", "a b/ä.data"])
def test_without_a_manifest_the_data_may_be_anywhere_beside_the_file(version: Path, location: str) -> None:
    weights_outside(version, location)
    (version / "manifest.json").unlink()
    assert refusal(version) == ""
    (version / location).unlink()
    assert "is missing from the version folder" in refusal(version)
    (version / location).symlink_to("/etc/hosts")
    assert "leads out of the model's folder" in refusal(version)


def test_a_file_that_nothing_names_is_a_warning(
    version: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    found = folders.find(version.parent.parent, "m")
    (version / ".hidden").touch()
    with caplog.at_level(logging.WARNING):
        open_version(found, 1)
    assert show([str(version)]) == 0
    assert not caplog.messages
    assert "warnings" not in capsys.readouterr().out
    for name in ("notes.txt", "weights.bin"):
        (version / name).touch()
    said = "the manifest does not name notes.txt, weights.bin, so nothing reads them; remove them"
    with caplog.at_level(logging.WARNING):
        open_version(found, 1)
    assert caplog.messages == [f"model m version 1: {said}"]
    assert show([str(version)]) == 0
    assert said in capsys.readouterr().out
    for number in range(10):
        (version / f"more-{number}").touch()
    assert show([str(version)]) == 0
    assert "more-0, more-1, more-2, more-3, more-4 and 7 more, so nothing reads them" in capsys.readouterr().out
