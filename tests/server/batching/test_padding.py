"""What fills a batch up to its bucket: zeros, never what an earlier request sent."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnserve.batching.instance import ModelInstance


class Recorder:
    """A session that keeps a copy of every batch it is given, and answers with the batch."""

    def __init__(self) -> None:
        self.batches: list[NDArray[Any]] = []

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        self.batches.append(batch.copy())
        return [batch.copy()]


@pytest.mark.parametrize("parts", [[1], [3], [1, 2], [2, 1, 2]])
def test_padding_is_zero_where_the_memory_was_not(parts: list[int]) -> None:
    session = Recorder()
    # As the memory is after a full batch of another client's pixels.
    buffers = {size: np.full((size, 4), 9, np.uint8) for size in (4, 8)}
    count = sum(parts)
    instance = ModelInstance(session, "padding", (4, 8), buffers.get)
    outputs = instance.run([np.ones((part, 4), np.uint8) for part in parts])
    instance.close()
    (batch,) = session.batches
    assert len(batch) == (4 if count <= 4 else 8)
    assert (batch[:count] == 1).all()
    assert not batch[count:].any()
    assert outputs[0].shape == (count, 4)


def test_an_instance_that_keeps_its_buffer_clears_it_each_time() -> None:
    session = Recorder()
    buffer = np.zeros((4, 2), np.uint8)
    instance = ModelInstance(session, "padding", (4,), lambda size: buffer if size == 4 else None)
    for count in (4, 1, 3, 2):
        instance.run([np.full((count, 2), count, np.uint8)])
    instance.close()
    # A full one that comes as one part needs no buffer.
    assert [batch[:, 0].tolist() for batch in session.batches] == [[4] * 4, [1, 0, 0, 0], [3, 3, 3, 0], [2, 2, 0, 0]]


def test_without_a_buffer_padding_is_zero_too() -> None:
    session = Recorder()
    rows = np.full((2**16 + 1, 2), 7, np.uint8)
    instance = ModelInstance(session, "padding", (2**17,))
    # Memory of a size that was just freed is given out again as it was.
    for _ in range(3):
        np.full((2**17, 2), 9, np.uint8)
        instance.run([rows])
    instance.close()
    assert not any(batch[len(rows) :].any() for batch in session.batches)
