"""`cnnserve import --evaluation`: the accuracy on labelled images, and what other preprocessing would change."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cnnserve_export.cli import import_onnx

COLOURS = {"red": (200, 40, 30), "green": (40, 190, 60), "blue": (30, 60, 210)}
SIDE = 16


def colour_network(
    path: Path, *, scale: float = 1 / 255, bgr: bool = False, middle: bool = False, batch: str = "n"
) -> Path:
    """Logits red, green, blue: the mean of each channel above a threshold, for values of 0 to 255 x `scale`.

    With `bgr` it takes the channels in that order; with `middle` it looks at the middle columns only.
    """
    weights = np.eye(3, dtype=np.float32)[:: -1 if bgr else 1] * np.float32(0.1 / scale)
    # Black outweighs: values on another scale all look black, which is a class of its own.
    bias = np.array([0, 0, 0, 6], np.float32)
    matrix = np.concatenate([weights, np.zeros((3, 1), np.float32)], axis=1)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["means", "matrix", "bias"], ["scores"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "colours",
        [value("pixels", TensorProto.FLOAT, [batch, 3, SIDE, SIDE])],
        [value("scores", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(array, name) for name, array in (("matrix", matrix), ("bias", bias))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


@pytest.fixture(scope="module", name="photos")
def photos_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of each colour: a third of each in the middle, the sides of the next colour."""
    folder = tmp_path_factory.mktemp("photos")
    names = list(COLOURS)
    for number, name in enumerate(names):
        (folder / name).mkdir()
        for seed in range(12):
            pixels = np.empty((30, 90, 3), np.int64)
            pixels[:] = COLOURS[names[(number + 1) % 3]]
            pixels[:, 33:57] = COLOURS[name]
            noise = np.random.default_rng(seed).integers(-9, 9, pixels.shape)
            Image.fromarray((pixels + noise).astype(np.uint8)).save(folder / name / f"{seed}.png")
    return folder


Run = Callable[..., str]


@pytest.fixture(name="run")
def run_fixture(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Imports a file with flags and the photographs as evaluation; returns what is told."""
    labels = tmp_path / "labels.txt"
    labels.write_text("red\ngreen\nblue\nblack\n")

    def run(path: Path, *flags: str, status: int = 0, folder: Path = photos) -> str:
        command = [
            str(path),
            "--labels",
            str(labels),
            "--evaluation",
            str(folder),
            "--repository",
            f"{tmp_path}/models",
        ]
        assert import_onnx([*command, "--name", "m", *flags]) == status
        return capsys.readouterr().err

    return run


PLAIN = ("--mean", "0,0,0", "--std", "1,1,1")


def test_good_preprocessing_has_no_warning(run: Run, tmp_path: Path) -> None:
    told = run(colour_network(tmp_path / "m.onnx"), *PLAIN, "--resize", "16")
    assert "accuracy 100.00% of 36 images (photos" in told
    assert "right with" not in told


@pytest.mark.parametrize(
    ("network", "flags", "expected"),
    [
        ({"bgr": True}, (*PLAIN, "--resize", "16"), "100.0% of 36 images are right with --color BGR"),
        (
            {"scale": 1.0},
            (*PLAIN, "--resize", "16"),
            "right with --scale 1 --mean 0,0,0 --std 1,1,1, but only 0.0% with",
        ),
        ({}, PLAIN, "100.0% of 36 images are right with --resize 16, but only 0.0% with what was given; check how"),
    ],
)
def test_what_would_do_better_is_named(
    network: dict[str, object], flags: tuple[str, ...], expected: str, run: Run, tmp_path: Path
) -> None:
    told = run(colour_network(tmp_path / "m.onnx", **network), *flags)  # type: ignore[arg-type]
    assert "WARNING: " in told
    assert expected in told
    assert "publish" in told


def test_a_fixed_batch_is_evaluated_too(run: Run, tmp_path: Path) -> None:
    path = colour_network(tmp_path / "m.onnx", batch=5)
    model = onnx.load(path)
    # So that the batch cannot be freed.
    model.graph.node.append(helper.make_node("Expand", ["scores", "shape"], ["expanded"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([5, 4], np.int64), "shape"))
    model.graph.output[0].name = "expanded"
    onnx.save(model, path)
    told = run(path, *PLAIN, "--resize", "16", "--max-batch-size", "5")
    assert "accuracy 100.00% of 36 images" in told


def test_images_without_labels_are_refused(run: Run, tmp_path: Path, photos: Path) -> None:
    told = run(colour_network(tmp_path / "m.onnx"), *PLAIN, status=1, folder=photos / "red")
    assert "no image in red is in a sub-folder named by a label or the number of a class" in told
    told = run(tmp_path / "m.onnx", *PLAIN, status=1, folder=tmp_path / "nothing")
    assert "nothing" in told
    assert not (tmp_path / "models" / "m").exists()
