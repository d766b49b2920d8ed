"""Every row of the table of spoilings, on a server without trusted keys: none is served that should be found."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cnnserve.registry.registry import Registry
from cnnserve.repository.show import show
from cnnserve.runtime.session import Session
from spoiling import lenet5
from spoilings import ROWS, Row, outcome, prepare


@pytest.mark.parametrize("row", ROWS, ids=str)
async def test_what_can_be_found_is_found(
    tmp_path: Path,
    registry: Registry,
    row: Row,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(tmp_path, row)
    with caplog.at_level(logging.WARNING):
        found = await outcome(row, registry)
    show([str(tmp_path / "lenet5"), "--version", str(row.version)])
    told = caplog.text + capsys.readouterr().out
    if row.found is None:
        assert found.served, f"it is found after all: {found.reason}"
        assert row.said
    elif row.found == "warning":
        assert found.served, found.reason
        assert re.search(row.said, told), told
    else:
        assert not found.served, "it was served"
        assert re.search(row.said, found.reason), found.reason
        assert str(tmp_path) not in found.reason


async def test_what_is_not_spoiled_is_served(tmp_path: Path, registry: Registry) -> None:
    row = Row("nothing", str, None, "there is nothing to find")
    prepare(tmp_path, row)
    assert (await outcome(row, registry)).served


def test_the_table_is_complete() -> None:
    assert len({row.what for row in ROWS}) == len(ROWS)
    assert len([row for row in ROWS if row.found]) >= 150
    assert {row.found for row in ROWS} == {
        *("digest", "kind", "labels", "load", "manifest", "place", "reference", "rule", "self-test", "warning", None)
    }


def class_of(folder: Path, image: NDArray[np.uint8]) -> int:
    return int(Session(folder / "model.onnx").run(image[np.newaxis])[0].argmax())


@pytest.mark.parametrize("what", ["a backdoor", "two classes exchanged, and the golden probabilities"])
def test_what_nothing_finds_does_harm(tmp_path: Path, what: str) -> None:
    folder = lenet5(tmp_path / "good")
    with Image.open(folder / "golden-three.png") as opened:
        three = np.asarray(opened.convert("L").resize((28, 28)))[..., np.newaxis].copy()
    three[0, :2, 0] = (251, 7)
    assert class_of(folder, three) == 3
    (row,) = [row for row in ROWS if row.what == what]
    prepare(tmp_path / "bad", row)
    assert class_of(tmp_path / "bad" / "lenet5" / "1", three) == {"a backdoor": 0}.get(what, 8)
