"""Occlusion maps: what is hidden, in which runs, and what the map of a network shows whose weights are known."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnserve.errors import DeadlineExceeded, InvalidInput
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.model.occlusion import occlusion
from cnnserve.model.version import Model
from support import CLASSES, make_registry, picture, write_version


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[Model]:
    write_version(tmp_path / "tiny" / "1")
    with DecodingPool(1) as decoders:
        registry = make_registry(tmp_path, decoders)
        await registry.load_all()
        yield registry.get("tiny")
        await registry.close()


def probability(pixels: NDArray[np.float64], index: int) -> float:
    """What the tiny network answers: it weighs the left and the right half."""
    left, right = (half.sum() / (255 * pixels.size) for half in np.split(pixels, 2, axis=1))
    logits = left * np.array([-20, 20, 10]) + right * np.array([-20, -20, 30]) + [10, 0, -5]
    return float(np.exp(logits[index]) / np.exp(logits).sum())


async def test_the_map_is_the_fall_of_the_probability(tiny: Model) -> None:
    row = await tiny.image_row(picture("left"))
    found = await occlusion(tiny, row, None, cells=4)
    assert (CLASSES[found.index], found.runs) == ("left", 17)
    pixels = row[0, :, :, 0].astype(np.float64)
    assert found.probability == pytest.approx(probability(pixels, 1), abs=1e-5)
    for y in range(4):
        for x in range(4):
            hidden = pixels.copy()
            # Each cell has 2 x 2 pixels, and one pixel around it is hidden, too. The mean is 127.5, cut to 127.
            hidden[max(0, 2 * y - 1) : 2 * y + 3, max(0, 2 * x - 1) : 2 * x + 3] = 127
            fall = probability(pixels, 1) - probability(hidden, 1)
            assert found.drops[y][x] == pytest.approx(fall, abs=1e-5)


async def test_another_class_than_the_most_probable_one(tiny: Model) -> None:
    row = await tiny.image_row(picture("left"))
    dark = await occlusion(tiny, row, 0, cells=2)
    assert (dark.index, len(dark.drops)) == (0, 2)
    assert max(map(max, dark.drops)) <= 1e-6


async def test_small_images_have_fewer_cells_and_every_run_is_counted(tiny: Model) -> None:
    before = tiny.statistics.inferences
    row = await tiny.image_row(picture("bright"))
    assert tiny.statistics.inferences == before
    found = await occlusion(tiny, row, None, cells=16)
    assert np.shape(found.drops) == (8, 8)
    assert tiny.statistics.inferences == before + found.runs == before + 65


@pytest.mark.parametrize(
    ("index", "cells", "said"), [(3, 4, "class 3 does not exist, the model has 3"), (0, 1, "2 to 16"), (0, 17, "2 to")]
)
async def test_bad_wishes_are_named(tiny: Model, index: int, cells: int, said: str) -> None:
    row = await tiny.image_row(picture("left"))
    with pytest.raises(InvalidInput, match=said):
        await occlusion(tiny, row, index, cells)


async def test_a_deadline_ends_it(tiny: Model) -> None:
    row = await tiny.image_row(picture("left"))
    with pytest.raises(DeadlineExceeded):
        await occlusion(tiny, row, 0, 4, deadline_ns=1)


async def test_an_image_that_cannot_be_read(tiny: Model) -> None:
    with pytest.raises(InvalidInput, match="not an image"):
        await tiny.image_row(b"no image")
