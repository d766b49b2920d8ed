"""Runs of small models on the event loop's thread."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cnnserve.batching.batcher import BatchResult, DynamicBatcher
from cnnserve.batching.inline import InlineRuns, Watchdog
from cnnserve.batching.instance import ModelInstance, Steps
from cnnserve.batching.policy import BatchPolicy
from cnnserve.errors import InferenceFailed
from cnnserve.runtime.session import Session
from support import HANG_S, until

Make = Callable[..., DynamicBatcher]


class Runner:
    """Doubles its rows. Remembers sizes and threads; a row of -1 lasts until `terminate`, or for ever off the loop."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.threads: list[str] = []
        self.terminated = threading.Event()

    def run(self, batch: Any) -> list[Any]:
        self.sizes.append(len(batch))
        self.threads.append(threading.current_thread().name)
        if (batch == -1).any() and threading.current_thread() is threading.main_thread():
            assert self.terminated.wait(HANG_S)
            raise InferenceFailed("terminated")
        return [batch * 2]

    def terminate(self) -> None:
        self.terminated.set()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[DynamicBatcher] = []

    def make(runner: Runner, rows_at_most: int = 8, **policy: Any) -> DynamicBatcher:
        policy.setdefault("max_batch_size", 16)
        inline = InlineRuns(Steps(runner, (), None), runner.terminate, rows_at_most)
        made.append(DynamicBatcher(BatchPolicy(**policy), [ModelInstance(runner, "instance")], inline=inline))
        return made[-1]

    yield make
    for batcher in made:
        await asyncio.wait_for(batcher.close(), HANG_S)
        assert "queued=0 admitted=0 running=0 idle=1/1" in repr(batcher)


def submit(batcher: DynamicBatcher, *values: float) -> asyncio.Task[BatchResult]:
    rows = np.array(values).reshape(-1, 1)
    return asyncio.create_task(batcher.submit(rows, batcher.reserve(len(rows))))


async def values(task: asyncio.Task[BatchResult]) -> list[float]:
    return [float(value) for value in (await task).outputs[0][:, 0]]


async def test_requests_that_arrive_together_share_a_run_on_the_loops_thread(make: Make) -> None:
    runner = Runner()
    batcher = make(runner)
    tasks = [submit(batcher, number) for number in range(6)]
    assert [await values(task) for task in tasks] == [[2.0 * number] for number in range(6)]
    assert runner.sizes == [6]
    assert set(runner.threads) == {threading.main_thread().name}


async def test_a_batch_ends_at_what_the_loop_may_run_and_others_get_their_turn_between_two(make: Make) -> None:
    runner = Runner()
    batcher = make(runner, rows_at_most=4)
    tasks = [submit(batcher, number) for number in range(12)]
    turns: list[int] = []

    async def other() -> None:
        while not all(task.done() for task in tasks):
            turns.append(len(runner.sizes))
            await asyncio.sleep(0)

    await asyncio.gather(other(), *tasks)
    assert runner.sizes == [4, 4, 4]
    assert {1, 2} <= set(turns)


async def test_a_larger_request_runs_on_the_instances_thread(make: Make) -> None:
    runner = Runner()
    batcher = make(runner, rows_at_most=4)
    assert await values(submit(batcher, *range(10))) == [2.0 * number for number in range(10)]
    assert runner.threads == ["instance"]
    assert await values(submit(batcher, 1)) == [2.0]
    assert runner.threads[1:] == [threading.main_thread().name]


async def test_a_run_that_takes_too_long_is_ended_and_repeated_on_the_instances_thread(make: Make) -> None:
    runner = Runner()
    batcher = make(runner)
    assert await values(submit(batcher, -1)) == [-2.0]
    assert runner.threads == [threading.main_thread().name, "instance"]
    assert await values(submit(batcher, 3)) == [6.0]
    assert runner.threads[2:] == ["instance"]


async def test_a_run_that_fails_is_its_callers_error_and_the_model_stays_on_the_loop(make: Make) -> None:
    class Failing(Runner):
        def run(self, batch: Any) -> list[Any]:
            super().run(batch)
            if (batch == 13).any():
                raise InferenceFailed("thirteen")
            return [batch]

    runner = Failing()
    batcher = make(runner)
    with pytest.raises(InferenceFailed, match="thirteen"):
        await submit(batcher, 13)
    assert await values(submit(batcher, 1)) == [1.0]
    assert set(runner.threads) == {threading.main_thread().name}


async def test_a_watchdog_leaves_many_short_runs_alone() -> None:
    """A watchdog that mistakes many short runs for one run ends them in each attempt.

    If other processes interrupt a run for long, the watchdog may end it, so one of several attempts has to succeed.
    """
    limit_s = 0.02
    watchdog = Watchdog(limit_s)

    def are_left_alone() -> bool:
        ended = threading.Event()
        runs = InlineRuns(Steps(Runner(), (), None), ended.set, 8)
        runs._watchdog = watchdog
        stop = time.monotonic() + 10 * limit_s
        while time.monotonic() < stop:
            runs.run([np.ones((1, 1))])
        return not runs.was_ended and not ended.is_set()

    assert any(are_left_alone() for _ in range(20))
    await until(lambda: not watchdog._active.is_set())


def slow_onnx(path: Path) -> None:
    """Without a loop in its graph, but with minutes of work: a chain of large matrix products."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y0"])]
    nodes += [helper.make_node("MatMul", [f"y{number}", "x"], [f"y{number + 1}"]) for number in range(2000)]
    nodes.append(helper.make_node("ReduceMean", [f"y{2000}"], ["out"], axes=[1, 2], keepdims=0))
    shape = ["n", 1024, 1024]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def test_onnx_runtime_ends_a_run_when_asked_and_runs_again(tmp_path: Path) -> None:
    slow_onnx(tmp_path / "slow.onnx")
    runs = Session(tmp_path / "slow.onnx").terminable()
    steps = Steps(runs, (), None)
    inline = InlineRuns(steps, runs.terminate, 1)
    outcome = inline.run([np.zeros((1, 1024, 1024), np.float32)])
    assert inline.was_ended
    assert isinstance(outcome.error, InferenceFailed)
    # The next run is a new one; it would take as long, so it is ended, too.
    done = threading.Event()

    def terminate() -> None:
        while not done.wait(0.01):
            runs.terminate()

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        assert isinstance(steps.outcome([np.zeros((1, 1024, 1024), np.float32)]).error, InferenceFailed)
    finally:
        done.set()
        thread.join()
