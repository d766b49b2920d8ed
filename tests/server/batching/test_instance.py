"""A run over the rows of several requests, and the thread that makes it."""

import gc
import queue
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnserve.batching.instance import BatchOutcome, ModelInstance
from cnnserve.errors import InferenceFailed
from fakes import FakeSession
from support import HANG_S, wait_until


class Flat:
    """A model whose output has no batch dimension."""

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        return [batch.sum(keepdims=False).reshape(1)]


def test_a_fixed_batch_is_padded_and_cut() -> None:
    session = FakeSession()
    instance = ModelInstance(session, "test", buckets=(8,))
    outputs = instance.run([np.ones((1, 2)), 2 * np.ones((2, 2))])
    instance.close()
    assert session.sizes == [8]
    assert outputs[0].ravel().tolist() == [2, 4, 4]


def test_an_output_without_the_batch_dimension_is_an_error() -> None:
    instance = ModelInstance(Flat(), "test")
    with pytest.raises(InferenceFailed, match=r"output 0 has shape \(1,\) for a batch of 3"):
        instance.run([np.ones((3, 2))])
    instance.close()


def test_a_batch_is_padded_to_the_next_bucket() -> None:
    session = FakeSession()
    instance = ModelInstance(session, "test", buckets=(1, 2, 4, 8))
    for count in (1, 2, 3, 5, 9):
        instance.run([np.ones((count, 2))])
    instance.close()
    assert session.sizes == [1, 2, 4, 8, 9]


def test_a_run_that_blocks_raises_what_the_run_raised() -> None:
    session = FakeSession()
    instance = ModelInstance(session, "test")
    assert instance.run([np.ones((2, 3))])[0].ravel().tolist() == [3, 3]
    session.failures.append(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        instance.run([np.ones((1, 1))])
    instance.close()


def test_a_batch_that_failed_is_freed_at_once() -> None:
    session = FakeSession()
    instance = ModelInstance(session, "test")
    session.failures.append(ValueError("broken"))
    outcomes: queue.SimpleQueue[BatchOutcome] = queue.SimpleQueue()
    gc.disable()
    try:
        part = np.ones((2, 3))
        alive = weakref.ref(part)
        instance.execute([part], outcomes.put)
        assert outcomes.get(timeout=HANG_S).error is not None
        instance.run([np.ones((1, 1))])
        del part
        assert alive() is None
    finally:
        gc.enable()
        instance.close()


def test_a_listener_that_raises_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def deaf(_: BatchOutcome) -> None:
        raise RuntimeError("deaf")

    instance = ModelInstance(FakeSession(), "test")
    instance.execute([np.ones((1, 1))], deaf)
    assert instance.run([np.ones((1, 1))])[0].tolist() == [[1]]
    assert "could not be reported" in caplog.text
    instance.close()


def test_an_instance_that_is_dropped_ends_its_thread() -> None:
    instance = ModelInstance(FakeSession(), "dropped-instance")
    del instance
    gc.collect()
    wait_until(lambda: "dropped-instance" not in {thread.name for thread in threading.enumerate()})
