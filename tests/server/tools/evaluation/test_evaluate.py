"""`cnnserve evaluate` with real servers, and in process: the same numbers, which are those of scikit-learn."""

import contextlib
import csv
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from sklearn import metrics as sklearn

from cnnserve.tools.evaluation import cli
from cnnserve.tools.evaluation.local import LocalRunner
from cnnserve.tools.evaluation.remote import RemoteRunner
from cnnserve.tools.evaluation.runner import Runner
from cnnserve_client import Client
from cnnserve_client.commands import sources
from cnnserve_client.commands.terminal import Progress
from cnnserve_export.digits import held_out_digits, write_folder
from support import CLASSES, RunningServer, picture, png, serving, tiny_onnx, write_version

LENET = Path(__file__).parents[4] / "model_repo"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out digits by value, as they are and, so that the model makes mistakes, with noise."""
    root = tmp_path_factory.mktemp("digits")
    write_folder(held_out_digits(), root)
    random = np.random.default_rng(0)
    for number, (data, value) in enumerate(held_out_digits()):
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L")) + random.normal(0, 90, (8, 8))
        (root / str(value) / f"noisy-{number:04}.png").write_bytes(png(pixels.clip(0, 255).astype(np.uint8)))
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`: version 2 takes for `bright` what version 1 takes for `left`.

    `unlabelled` has no labels, `plain` no manifest.
    """
    root = tmp_path_factory.mktemp("repository")
    (root / "lenet5").symlink_to(LENET / "lenet5")
    write_version(root / "tiny" / "1")
    changed = onnx.load_from_string(tiny_onnx())
    bias = next(one for one in changed.graph.initializer if one.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([10, -30, 0], np.float32), "bias"))
    write_version(root / "tiny" / "2", changed.SerializeToString())
    (root / "tiny" / "version_labels.json").write_text('{"stable": 1}')
    write_version(root / "unlabelled" / "1", labels=None)
    (root / "plain" / "1").mkdir(parents=True)
    (root / "plain" / "1" / "model.onnx").write_bytes(tiny_onnx())
    return root


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "server.log", repository) as server:
        yield server


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images of each class of `tiny`, of which one of `left` lies in the folder of `dark`."""
    root = tmp_path / "images"
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for number in range(2):
            (root / kind / f"{number}.png").write_bytes(picture("left" if kind == "dark" and number else kind))
    return root


Run = Callable[..., tuple[int, Any]]


@pytest.fixture(params=["server", "local"])
def run(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], repository: Path) -> Run:
    """`run(MODEL, ...)` returns exit status and JSON, through a server or in process."""
    if request.param == "local":
        where: list[str] = ["--local", str(repository)]
    else:
        where = ["--address", request.getfixturevalue("server").address]

    def run(*arguments: str | Path) -> tuple[int, Any]:
        status = cli.evaluate([*map(str, arguments), "--json", *where])
        return status, json.loads(capsys.readouterr().out)

    return run


def test_the_held_out_digits_have_the_numbers_of_scikit_learn(run: Run, digits: Path, server: RunningServer) -> None:
    status, found = run("lenet5", digits)
    files = sorted(digits.glob("*/*.png"))
    truth = [int(file.parent.name) for file in files]
    with Client(server.address) as client:
        results = list(client.classify_many(files, model="lenet5", top_k=10))
    rows = np.zeros((len(files), 10))
    for row, result in zip(rows, results, strict=True):
        row[[one.index for one in result.classes]] = [one.probability for one in result.classes]
    predicted = [result.top.index for result in results]
    (model,) = found["models"]
    assert status == 0
    assert found["complete"]
    assert model["images"] == len(files) == 720
    assert 0.5 < model["top1"] < 1
    assert model["top1"] == sklearn.accuracy_score(truth, predicted)
    assert model["top5"] == sklearn.top_k_accuracy_score(truth, rows, k=5)
    assert [one["precision"] for one in model["classes"]] == list(
        sklearn.precision_score(truth, predicted, average=None)
    )
    assert [one["recall"] for one in model["classes"]] == list(sklearn.recall_score(truth, predicted, average=None))
    matrix = np.zeros((10, 10), int)
    for cell in model["confusion"]:
        matrix[cell["truth"], cell["predicted"]] = cell["images"]
    assert (matrix == sklearn.confusion_matrix(truth, predicted)).all()
    worst = model["most_confidently_wrong"]
    assert len(worst) == 24
    assert worst[0]["probability"] == max(
        result.top.probability for result, value in zip(results, truth, strict=True) if result.top.index != value
    )
    latency = model["latency"]
    assert latency["requests"] == 50
    assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"]


def test_server_and_process_find_the_same(
    server: RunningServer, digits: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*where: str) -> Any:
        assert cli.evaluate(["lenet5", str(digits), "--json", *where]) == 0
        document = json.loads(capsys.readouterr().out)
        for one in (document, document["models"][0]):
            for measured in ("seconds", "latency", "self_test"):
                one.pop(measured, None)
        return document

    assert found("--address", server.address) == found("--local", str(repository))


def test_two_versions_are_compared(run: Run, images: Path) -> None:
    status, found = run("tiny:stable", images, "--against", "tiny:2")
    assert status == 0
    assert [(one["version"], one["correct"]) for one in found["models"]] == [("1", 5), ("2", 3)]
    agreement = found["agreement"]
    assert (agreement["images"], agreement["same_top1"]) == (6, 3)
    assert [(Path(one["file"]).name, one["kind"], one["second"]["label"]) for one in agreement["flipped"]] == [
        ("1.png", "wrong", "bright"),
        ("0.png", "broken", "bright"),
        ("1.png", "broken", "bright"),
    ]
    assert agreement["largest_difference"]["difference"] > 0.9


def test_models_with_other_classes_are_not_compared(
    images: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.evaluate(["tiny", str(images), "--against", "lenet5", "--local", str(repository)]) == 1
    error = capsys.readouterr().err
    assert "have different classes (only tiny version 2 has 'bright', 'dark', 'left'" in error


def test_what_cannot_be_judged_is_named_and_counted(run: Run, images: Path) -> None:
    (images / "dark" / "broken.png").write_bytes(b"no image")
    (images / HOSTILE).mkdir()
    (images / HOSTILE / "0.png").write_bytes(picture("dark"))
    status, found = run("tiny:1", images)
    assert status == 1
    assert not found["complete"]
    assert found["models"][0]["images"] == 6
    assert found["unknown_classes"] == {HOSTILE: 1}
    (failed,) = found["failed"]
    assert failed["file"].endswith("dark/broken.png")
    assert "are not an image" in failed["error"]


def test_a_csv_gives_the_same_as_folders(run: Run, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    with file.open("w", newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["path", "label"])
        rows.writerows([f"images/{path.relative_to(images)}", path.parent.name] for path in images.glob("*/*"))
    status, found = run("tiny:1", "--csv", file)
    assert (status, found["models"][0]["correct"]) == (0, 5)


def test_without_labels_folders_are_numbers(run: Run, images: Path) -> None:
    for number, kind in enumerate(CLASSES):
        (images / kind).rename(images / str(number))
    status, found = run("unlabelled", images)
    assert (status, found["models"][0]["correct"]) == (0, 5)
    assert found["models"][0]["classes"][1]["label"] == "class 1"
    assert run("tiny:1", images, "--by-index")[1]["models"][0]["correct"] == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tiny"], "no images are given"),
        (["tiny", "images", "--device", "cuda"], "--device has no effect without --local"),
        (["tiny", "images", "--jsn"], "unknown flag --jsn; did you mean --json?"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        cli.evaluate(arguments)
    error = capsys.readouterr().err
    assert ending.value.code == 2
    assert error.count("\n") == 1
    assert text in error


@pytest.mark.parametrize("where", ["server", "local"])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["tiny", "IMAGES/dark"], "no class folders"),
        (["tiny", "IMAGES/absent"], "No such file or directory"),
        (["lenet5", "IMAGES"], "knows none of the 3 classes ('bright', 'dark', 'left'): each has to be the label of"),
        (["unlabelled", "IMAGES"], "each has to be the number of a class, 0 to 2"),
        (["absent", "IMAGES"], "absent"),
        (["tiny:7", "IMAGES"], "version 7"),
        (["plain", "IMAGES"], "takes no images"),
        (["tiny", "IMAGES", "--report", "IMAGES"], "this file cannot be written"),
        (["tiny", "IMAGES", "--report", "IMAGES/absent/out.html"], "this file cannot be written"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    where: str,
    arguments: list[str],
    text: str,
    images: Path,
    repository: Path,
    server: RunningServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [word.replace("IMAGES", str(images)) for word in arguments]
    words += ["--local", str(repository)] if where == "local" else ["--address", server.address]
    assert cli.evaluate(words) == 1
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert text in captured.err


def test_images_that_all_fail_are_no_report(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "dark").mkdir()
    (tmp_path / "dark" / "0.png").write_bytes(b"no image")
    report = tmp_path / "out.html"
    assert cli.evaluate(["tiny", str(tmp_path), "--local", str(repository), "--report", str(report)]) == 1
    assert not report.exists()


def test_a_reader_that_goes_away_leaves_the_report(
    images: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        report = tmp_path / "out.html"
        assert cli.evaluate(["tiny:1", str(images), "--local", str(repository), "--report", str(report)]) == 141
    assert "Most confidently wrong" in report.read_text()


def test_a_repository_that_does_not_exist_is_named(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.evaluate(["tiny", str(images), "--local", "/nowhere"]) == 1
    assert "--local /nowhere is not a folder" in capsys.readouterr().err


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """More images than are in flight at once."""
    folder = tmp_path / "many" / "left"
    folder.mkdir(parents=True)
    for number in range(3000):
        (folder / f"{number:04}.png").write_bytes(picture("left"))
    return folder.parent


def after_ten(monkeypatch: pytest.MonkeyPatch, event: Callable[[], object]) -> None:
    """Lets `event` happen when ten images are done."""
    draw = Progress.update

    def update(self: Progress, done: int, failed: int) -> None:
        draw(self, done, failed)
        if done == 10:
            event()

    monkeypatch.setattr(Progress, "update", update)


def test_a_server_that_goes_away_leaves_the_report_of_what_was_done(
    many: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "out.html"
    with serving(tmp_path / "server.log", repository) as server:
        after_ten(monkeypatch, lambda: (server.process.kill(), server.wait()))
        words = ["tiny:1", str(many), "--json", "--report", str(report), "--address", server.address]
        status = cli.evaluate([*words, "--timeout-s", "2"])
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert status == 1
    assert not found["complete"]
    assert 10 <= found["models"][0]["images"] < 3000
    assert found["asked"] == 3000
    assert server.address in found["stopped"]
    assert f"stopped after {found['models'][0]['images']:,} of 3,000 images" in captured.err
    assert "stopped after" in report.read_text()


def test_ctrl_c_leaves_the_report_of_what_was_done(
    run: Run, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_ten(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    report = tmp_path / "out.html"
    status, found = run("tiny:1", many, "--report", report)
    assert status == 130
    assert found["stopped"] == "interrupted"
    assert found["models"][0]["images"] == 10
    assert "stopped after 10 of 3,000 images: interrupted" in report.read_text()


def test_the_summary_names_everything(images: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "unheard").mkdir()
    (images / "unheard" / "0.png").write_bytes(picture("dark"))
    (images / "left" / "\x1b[2Jbroken.png").write_bytes(b"")
    assert cli.evaluate(["tiny:1", str(images), "--against", "tiny:2", "--local", str(repository)]) == 1
    out = capsys.readouterr().out
    for text in (
        "83.33% (5 right)",
        "Most confidently wrong of tiny version 1",
        "same top-1 for 3 of 6 images (50.00%)",
        "3 images flipped: 0 corrected, 2 broken, 1 wrong with both",
        "images of unknown classes, not sent (a name has to be the label of exactly one class): 1\n",
        "unheard: 1 image",
        "left/\\x1b[2Jbroken.png: the image is empty (0 bytes)",
    ):
        assert text in out
    assert "\x1b" not in out


@pytest.mark.parametrize("where", ["server", "local"])
def test_only_the_images_needed_next_are_read(where: str, many: Path, repository: Path, server: RunningServer) -> None:
    taken = 0

    def entries() -> Iterator[sources.Entry]:
        nonlocal taken
        for entry in sources.find([str(many)]):
            taken += 1
            yield entry

    with contextlib.ExitStack() as stack:
        if where == "local":
            runner: Runner = stack.enter_context(LocalRunner(repository, "tiny", "1"))
        else:
            runner = RemoteRunner(stack.enter_context(Client(server.address)), "tiny", "1")
        with contextlib.closing(runner.results(entries(), 5)) as results:
            for number, result in enumerate(results, 1):
                assert result.ok
                assert taken - number < 300
    assert taken == number == 3000
