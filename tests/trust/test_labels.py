"""Kind: labels that name nothing, or that change what a person reads."""

import logging
from pathlib import Path

import pytest

from cnnserve.repository.show import show
from cnnserve_export.cli import import_onnx
from spoiling import file, lenet5, refusal

ROWS = [
    ("all empty", [""] * 10, "all 10 labels are empty"),
    ("only spaces", [" "] * 10, "all 10 labels are empty"),
    ("all equal", ["digit"] * 10, "all 10 labels are 'digit'"),
    ("an escape sequence", ["\x1b[2J", *"123456789"], r"label 1 ('\x1b[2J') contains the control character U+001B"),
    ("a tab", [*"012345678", "n\tnine"], r"label 10 ('n\tnine') contains the control character U+0009"),
    ("a C1 control", ["\x9b2J", *"123456789"], r"label 1 ('\x9b2J') contains the control character U+009B"),
    (
        "a reversed text",
        ["0", "\u202eeno", *"23456789"],
        r"label 2 ('\u202eeno') contains the control character U+202E",
    ),
    (
        "an isolated text",
        ["0", "\u2066one", *"23456789"],
        r"label 2 ('\u2066one') contains the control character U+2066",
    ),
]


@pytest.mark.parametrize(("what", "labels", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_published_labels_are_told_and_new_ones_refused(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    what: str,
    labels: list[str],
    said: str,
) -> None:
    folder = lenet5(tmp_path)
    file("labels.txt", lambda _: "".join(f"{label}\n" for label in labels).encode())(folder)
    with caplog.at_level(logging.WARNING):
        assert refusal(folder) == ""
    assert f"model lenet5 version 1: {said}; publish a version with correct labels" in caplog.text
    assert show([str(folder)]) == 0
    assert f"warnings       {said}\n" in capsys.readouterr().out
    # An import of the same model with these labels.
    flags = ["--name", "again", "--repository", str(tmp_path), "--labels", str(folder / "labels.txt"), "--color", "L"]
    flags += ["--max-batch-size", "2", str(folder / "model.onnx")]
    assert import_onnx(flags) == 1
    assert ("--allow-empty-labels" in (err := capsys.readouterr().err)) or "labels.txt is empty" in err
    assert not (tmp_path / "again").exists()
    assert import_onnx([*flags, "--allow-empty-labels"]) == 0
    assert (tmp_path / "again" / "1" / "labels.txt").read_text().split("\n")[:-1] == [label.strip() for label in labels]


@pytest.mark.parametrize("labels", ["قطة كلب طائر سمكة فيل", "חתול כלב ציפור דג פיל", "猫 犬 鳥 魚 象"])
def test_labels_of_any_script_are_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture, labels: str) -> None:
    folder = lenet5(tmp_path)
    words = labels.split() * 2
    file("labels.txt", lambda _: "".join(f"{word}\n" for word in words).encode())(folder)
    with caplog.at_level(logging.WARNING):
        assert refusal(folder) == ""
    assert not caplog.records
