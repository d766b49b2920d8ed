"""The decoding threads. Clients share them fairly, whatever number and size of images they send."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cnnserve.batching.fair_queue import FairQueue, Path

T = TypeVar("T")


@dataclass(eq=False)
class _Job:
    path: Path
    cost_ns: float
    work: Callable[[], Any]
    future: "Future[Any]" = field(default_factory=Future)


class Share:
    """One request's share of the threads. `client` names its connection, such as "ipv4:127.0.0.1:4711"; "": nobody.

    Addresses share the threads equally; an address's connections share its part, and their requests theirs.
    """

    def __init__(self, pool: "DecodingPool", client: str) -> None:
        self.threads = pool.threads
        self._pool = pool
        self._path: Path = (client.rpartition(":")[0], client, self)

    def run(self, work: Callable[[], T], cost_ns: float) -> "asyncio.Future[T]":
        """Runs `work`, which is likely to take `cost_ns` of CPU time, on a thread when it is this request's turn."""
        return asyncio.wrap_future(self._pool.submit(self._path, cost_ns, work))

    def drop(self) -> None:
        """Forgets the work that has not begun; its futures are cancelled."""
        self._pool.drop(self._path)


class DecodingPool:
    """A fixed number of threads, and what waits for them. Its threads do not delay the exit."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queue: FairQueue[_Job] = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._work, name=f"decode_{number}", daemon=True).start()

    def __enter__(self) -> "DecodingPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, path: Path, cost_ns: float, work: Callable[[], T]) -> "Future[T]":
        """Queues `work`. If the pool is closed, the future is cancelled."""
        job = _Job(path, max(cost_ns, 1.0), work)
        with self._changed:
            if self._closed:
                job.future.cancel()
            else:
                self._queue.put(path, job.cost_ns, job)
                self._changed.notify()
        return job.future

    def drop(self, path: Path) -> None:
        """Cancels the work of a path that has not begun."""
        with self._changed:
            jobs = self._queue.remove(path)
        for job in jobs:
            job.future.cancel()

    def close(self) -> None:
        """Cancels all work that has not begun, and ends the threads after the work that has."""
        with self._changed:
            self._closed = True
            jobs = [self._queue.pop() for _ in range(len(self._queue))]
            self._changed.notify_all()
        for job in jobs:
            job.future.cancel()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if job.future.set_running_or_notify_cancel():
                _run(job, self._charge)
            # The memory of the last images must be free while the thread waits for the next ones.
            del job

    def _next(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue))
            return self._queue.pop() if len(self._queue) else None

    def _charge(self, job: _Job, ns: int) -> None:
        if ns > job.cost_ns:
            with self._changed:
                self._queue.charge(job.path, ns - job.cost_ns)


def _run(job: _Job, charge: Callable[[_Job, int], None]) -> None:
    started_ns = time.thread_time_ns()
    error: BaseException | None = None
    result: Any = None
    try:
        result = job.work()
    except BaseException as failure:
        error = failure
    charge(job, time.thread_time_ns() - started_ns)
    # If the event loop is closed, nobody waits for the result any more.
    with contextlib.suppress(RuntimeError):
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)
    # The traceback of the error refers to this frame, which would be a cycle.
    del error, result
