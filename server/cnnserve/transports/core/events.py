"""Brings the events of a completion queue to the event loop.

Under load the loop takes the events itself, many in one turn, so no thread hands anything over and requests that arrive
together are handled together. If there is no event, a helper thread blocks in the core without the GIL, hands the first
event to the loop and then waits until the loop has found the queue empty. So nothing spins while nobody calls.

To hand an event over costs more than a small model's run. A client that was just answered often calls again at once. So
if the loop has nothing else to do, it waits a moment for the next event by itself. With one LeNet-5 request in flight,
that took 0.6 of the time and 0.7 of the CPU time.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

_log = logging.getLogger(__name__)

# More events than this wait for the next turn of the loop, so that HTTP and answers of models get their turns. An HTTP
# request, and a message of a stream, needs about ten turns, and a unary call two. So turns are short if the loop has
# such work: with 64 events, streams beside unary calls had 0.18 of what they reach alone, with 16 events 0.33.
_EVENTS_A_TURN = 64
_EVENTS_A_SHARED_TURN = 16
# What arrives meanwhile for the rest of the loop waits as long.
_LINGER_S = 0.0005
_TIMEOUT = cygrpc.CompletionType.queue_timeout
_SHUTDOWN = cygrpc.CompletionType.queue_shutdown


class EventPump:
    """Calls the tag of every event of `queue` with the event, on the event loop that runs at `start`.

    `is_shared` returns whether the loop has other work that waits for its turns, and `may_linger` whether nothing is
    expected on the loop but further events.
    """

    def __init__(self, queue: Any, is_shared: Callable[[], bool], may_linger: Callable[[], bool]) -> None:
        self._queue = queue
        self._is_shared = is_shared
        self._may_linger = may_linger
        # Released by the loop and taken by the helper thread, in turns. A semaphore costs more than the rest of a turn.
        self._resume = threading.Lock()
        self._resume.acquire()
        self._thread = threading.Thread(target=self._watch, name="grpc-events", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        # When the queue was found empty, and whether it has not been since.
        self._empty_at = 0.0
        self._behind = False

    def caught_up(self) -> float:
        """Returns the loop's time when the queue was empty: now, if no event waits."""
        assert self._loop is not None
        return self._empty_at if self._behind else self._loop.time()

    def start(self) -> None:
        """Begins to take events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def ended(self) -> None:
        """Waits until the queue is shut down and empty, and the helper thread has ended."""
        await self._ended.wait()
        self._thread.join()

    def _watch(self) -> None:
        assert self._loop is not None
        is_last = False
        while not is_last:
            event = self._queue.poll()
            is_last = event.completion_type == _SHUTDOWN
            try:
                self._loop.call_soon_threadsafe(self._take, event)
            except RuntimeError:
                # The loop is closed: nobody is left who could be told.
                return
            # An event keeps its call alive, and a call that is dropped late keeps its connection.
            event = None
            if not is_last:
                self._resume.acquire()

    def _take(self, event: Any) -> None:
        """Handles the first event after a pause, and all that are ready."""
        assert self._loop is not None
        self._behind, self._empty_at = True, self._loop.time()
        if self._handle(event):
            self._turn()

    def _turn(self) -> None:
        assert self._loop is not None
        for count in range(_EVENTS_A_SHARED_TURN if self._is_shared() else _EVENTS_A_TURN):
            event = self._queue.poll(0)
            if event.completion_type == _TIMEOUT:
                self._empty_at = self._loop.time()
                self._behind = count > 0
                if count:
                    # The rest of the loop gets its turn first.
                    self._loop.call_soon(self._turn)
                else:
                    self._linger()
                return
            if not self._handle(event):
                return
        self._loop.call_soon(self._turn)

    def _linger(self) -> None:
        """Waits a moment for an event if nothing else waits for the loop; without one the helper thread goes on."""
        assert self._loop is not None
        if self._may_linger() and not self._is_shared():
            event = self._queue.poll(time.time() + _LINGER_S)
            if event.completion_type != _TIMEOUT:
                self._behind, self._empty_at = True, self._loop.time()
                if self._handle(event):
                    self._loop.call_soon(self._turn)
                return
            self._empty_at = self._loop.time()
        self._resume.release()

    def _handle(self, event: Any) -> bool:
        """Returns whether more events may follow."""
        if event.completion_type == _SHUTDOWN:
            self._ended.set()
            self._resume.release()
            return False
        try:
            event.tag(event)
        except Exception:
            # One call's failure must not stop everybody's events.
            _log.exception("a gRPC event could not be handled")
        return True
