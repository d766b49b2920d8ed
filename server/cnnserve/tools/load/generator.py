"""Sends requests over connections and keeps what came of them.

A closed loop starts a request as soon as a response ended. An open loop starts requests when they are due, whatever
became of the earlier ones. Their latency counts from the time at which they were due, so that a server that stalls is
not spared the requests that it held up.
"""

import contextlib
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .answers import OK
from .clocks import busy_seconds, cpu_seconds
from .http1 import HttpConnection
from .http2 import Connection

AnyConnection = Connection | HttpConnection
Open = Callable[[], AnyConnection]
LOST = "connection lost"
UNANSWERED = "no response"
_REOPEN_S = 0.2
# If nothing came for so long, and for several times as long as the slowest response took, the server stalls.
_STALL_S = 1.0
_STALL_TIMES = 3


@dataclass(frozen=True)
class Window:
    """When to send and to measure: from `begin`, a time of `time.perf_counter`, and after `warm_up_s` for `seconds`.

    `server_pids`: the processes whose CPU time to read.
    """

    begin: float
    warm_up_s: float
    seconds: float
    server_pids: Sequence[int] = ()

    @property
    def start(self) -> float:
        """When the warm-up is over."""
        return self.begin + self.warm_up_s

    @property
    def end(self) -> float:
        """When the measurement is over."""
        return self.start + self.seconds


@dataclass
class Measured:
    """What happened between the warm-up and the end.

    `ended` has, for each request: when it ended, when it was due, and its status. In an open loop these are the
    requests that were due in this time; in a closed loop, those that ended in it. `begin` and `end` (0: the last
    response) are the time for the rate. `lags`: how much later the generator sent the requests than it could,
    in seconds. `finished`: how many requests of an open loop were answered with success in this time; those that were
    due in it may be answered later. `withheld`: how many requests the server did not let be in flight beside the
    others.
    CPU times are in seconds.
    """

    ended: list[tuple[float, float, str]] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    finished: int | None = None
    withheld: int = 0
    begin: float = 0.0
    end: float = 0.0
    own_cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    busy_cpu_s: float = 0.0


class Generator:
    """Keeps connections busy. `opens` are functions that open each of them, at first and after a loss.

    `precise`: it wakes up within microseconds, as an open loop must, but takes more time with many connections.
    """

    def __init__(self, opens: Sequence[Open], *, precise: bool = False) -> None:
        self._opens = opens
        self._connections: list[AnyConnection | None] = [opener() for opener in opens]
        self._reopen_at: dict[int, float] = {}
        self._ended: list[tuple[float, float, str]] = []
        # The connections that may have something to send.
        self._touched = set(range(len(opens)))
        # epoll waits for whole milliseconds, select does not.
        self._selector: selectors.BaseSelector = selectors.SelectSelector() if precise else selectors.DefaultSelector()
        for number, connection in enumerate(self._connections):
            if connection is not None:
                self._selector.register(connection.wire.fileno(), selectors.EVENT_READ, number)

    def closed(self, window: Window) -> Measured:
        """Keeps every connection full, and closes all at the end.

        If the server stalls at the end, this time counts, and so do the requests that it held up.
        """
        measured = self._measure(self._fill, window)
        measured.withheld = sum(one.withheld for one in self._connections if one is not None)
        done = len(self._ended)
        self._close()
        slowest = max((at - due for at, due, _ in measured.ended), default=0.0)
        last = max((at for at, _, _ in measured.ended), default=window.start)
        longest = max(_STALL_S, _STALL_TIMES * slowest)
        if window.end - last > longest:
            measured.end = window.end
            measured.ended += [entry for entry in self._ended[done:] if window.end - entry[1] > longest]
        return measured

    def open(self, arrivals: Iterator[float], window: Window, patience_s: float = 30.0) -> Measured:
        """Starts a request at each of the `arrivals`, which are seconds after the begin of the window.

        After the end it waits for at most `patience_s` seconds for the responses that are missing, then
        closes all connections.
        """
        schedule = _Schedule(arrivals, window.begin)
        start, end = window.start, window.end
        measured = self._measure(lambda: self._send_due(schedule, end), window)
        # Also those whose time came and went while this process did not run.
        schedule.advance(end)
        limit = end + patience_s
        while (schedule.waiting or self._is_waiting()) and time.perf_counter() < limit:
            self._turn(lambda: self._send_due(schedule, end), limit)
        self._close()
        now = time.perf_counter()
        unsent = [(now, due, UNANSWERED) for due in schedule.waiting]
        measured.finished = sum(status == OK and start < at <= end for at, _, status in self._ended)
        measured.ended = [entry for entry in (*self._ended, *unsent) if start < entry[1] <= end]
        measured.lags = [lag for due, lag in schedule.lags if start < due <= end]
        return measured

    def _measure(self, feed: Callable[[], float], window: Window) -> Measured:
        start, end = window.start, window.end
        while (left := window.begin - time.perf_counter()) > 0:
            time.sleep(left)
        while time.perf_counter() < start:
            self._turn(feed, start)
        before, before_of_server = _clocks(), _server_clocks(window.server_pids)
        while time.perf_counter() < end:
            self._turn(feed, end)
        own, busy = (after - first for first, after in zip(before, _clocks(), strict=True))
        # Some may have ended meanwhile.
        after_of_server = _server_clocks(window.server_pids)
        server = sum(after_of_server[pid] - before_of_server[pid] for pid in after_of_server)
        ended = [entry for entry in self._ended if entry[0] > start]
        # The time for the rate begins and ends with a response, so that it contains whole batches.
        first = max((entry[0] for entry in self._ended if entry[0] <= start), default=start)
        return Measured(ended, begin=first, own_cpu_s=own, server_cpu_s=server, busy_cpu_s=busy)

    def _turn(self, feed: Callable[[], float], end: float) -> None:
        """Starts what is to be started, and reads what arrives until the next is due, at most until `end`."""
        wake = min(feed(), end, *self._reopen_at.values())
        for number in self._touched:
            if (connection := self._connections[number]) is not None:
                self._try(number, connection.flush)
        self._touched.clear()
        for key, _ in self._selector.select(max(0.0, wake - time.perf_counter())):
            number = key.data
            connection = self._connections[number]
            if connection is not None:
                self._touched.add(number)
                self._try(number, connection.receive)
                self._keep(connection)
        if self._reopen_at:
            self._reopen()

    def _fill(self) -> float:
        now = time.perf_counter()
        for number in self._touched:
            if (connection := self._connections[number]) is not None:
                for _ in range(connection.free):
                    connection.start(now)
        return float("inf")

    def _send_due(self, schedule: "_Schedule", end: float) -> float:
        """Starts the requests that are due, as far as connections are free. Returns when the next is due."""
        now = time.perf_counter()
        schedule.advance(min(now, end))
        while schedule.waiting:
            free, number = max((0 if one is None else one.free, place) for place, one in enumerate(self._connections))
            connection = self._connections[number]
            if connection is None or free < 1:
                schedule.held_back_at = now
                return float("inf")
            self._touched.add(number)
            schedule.start(connection, now)
        return schedule.next if schedule.next <= end else float("inf")

    def _is_waiting(self) -> bool:
        return any(connection is not None and connection.is_waiting for connection in self._connections)

    def _close(self) -> None:
        for connection in self._connections:
            if connection is not None:
                connection.lose(UNANSWERED)
                self._keep(connection)
        self._selector.close()

    def _keep(self, connection: AnyConnection) -> None:
        self._ended += connection.ended
        connection.ended.clear()

    def _try(self, number: int, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            connection = self._connections[number]
            if connection is not None:
                self._selector.unregister(connection.wire.fileno())
                connection.lose(LOST)
                self._keep(connection)
                self._connections[number] = None
            self._reopen_at[number] = time.perf_counter() + _REOPEN_S

    def _reopen(self) -> None:
        now = time.perf_counter()
        for number, at in [*self._reopen_at.items()]:
            if at > now:
                continue
            try:
                connection = self._opens[number]()
            except OSError:
                self._reopen_at[number] = now + _REOPEN_S
                continue
            del self._reopen_at[number]
            self._connections[number] = connection
            self._touched.add(number)
            self._selector.register(connection.wire.fileno(), selectors.EVENT_READ, number)


class _Schedule:
    """The requests of an open loop: those that are due and not sent yet, and how late the others were sent."""

    def __init__(self, arrivals: Iterator[float], begin: float) -> None:
        self._arrivals = arrivals
        self._begin = begin
        self.waiting: deque[float] = deque()
        self.lags: list[tuple[float, float]] = []
        # When a request last had to wait for a free connection, which is no fault of the generator.
        self.held_back_at = begin
        self.next = begin + next(arrivals, float("inf"))

    def advance(self, now: float) -> None:
        while self.next <= now:
            self.waiting.append(self.next)
            self.next = self._begin + next(self._arrivals, float("inf"))

    def start(self, connection: AnyConnection, now: float) -> None:
        due = self.waiting.popleft()
        self.lags.append((due, now - max(due, self.held_back_at)))
        connection.start(due)


def _clocks() -> tuple[float, float]:
    return time.process_time(), busy_seconds()


def _server_clocks(pids: Sequence[int]) -> dict[int, float]:
    """Returns the CPU time of the processes that have not ended."""
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = cpu_seconds(pid)
    return found
