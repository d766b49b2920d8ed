"""Decides when the message of a call is read, so that what arrives stays within the memory budget.

The core holds a message in memory from the moment the server asks for it, and does not say how large it is before it is
whole. Until the server asks, flow control holds the bytes at the sender. So each call waits here for its turn:

1. A connection's next message is expected to be as large as its largest recent one. A connection that has sent none is
   expected to send the largest message that is allowed, and is asked for one message only until it has come. A message
   is asked for if what requests hold and what is expected fit into the budget. A call that is alone is always asked.
2. If a new connection's message does not come for a second while others wait, its call ends; the more wait, the sooner:
   silent connections must not keep others out.
3. Memory that large messages have freed stays with the process for a while. So before a large message is asked for that
   would take the process beyond the budget by its real size, freed memory goes back to the system.
4. Messages may be larger than expected, and compressed ones are unpacked by the core. So while messages are on their
   way, the process's memory is watched, and if it exceeds the budget, the calls whose message does not come end.

Calls that end here get RESOURCE_EXHAUSTED with a time after which to try again.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure

# Expected sizes are at least this, with room for a message that is a little larger than the largest before.
_LEAST_BYTES = 4096
_MARGIN = 1.25
_LARGE_BYTES = 2**20
# Of the largest recent message, after each smaller one.
_FADING = 0.9
# With this many other connections that wait, half of it; never less than a slow round trip.
_PATIENCE_S = 1.0
_MANY = 8
_LEAST_PATIENCE_S = 0.2
# How often memory is looked at while messages are on their way, and from which age a message counts as slow.
_LOOK_S = 0.02
_SLOW_S = 0.02
# A look that comes this late shows that the loop was blocked, and messages may have come that it has not seen.
_LATE_S = 0.05
# A client that does not even take its status loses its call after this time.
_CUT_OFF_S = 1.0
# Streams end after this many looks with too little memory.
_PATIENT_LOOKS = 25
# Without a large message for this time, memory that large messages have freed is not expected to be used again.
_QUIET_S = 0.2
# Memory that was freed last is returned to the system after this many looks at an idle server.
_QUIET_LOOKS = 60
# Connections whose sizes are remembered.
_MOST_PEERS = 4096
# What a call takes besides its messages: objects here and in the core, and messages up to this size, which are not
# counted by themselves, because counting each costs more than they take.
CALL_BYTES = 16 * 2**10
SMALL_BYTES = 4096


def memory_of(message_bytes: int) -> int:
    """Returns what a message takes until a handler has it: a large one is there twice, as bytes and as an object."""
    return 2 * message_bytes if message_bytes > _LARGE_BYTES else message_bytes


class Reader(Protocol):
    """A call that wants its next message."""

    is_stream: ClassVar[bool]

    def read(self, *, aside: bool) -> None:
        """Asks the core for the message, on another thread if `aside`: the core unpacks a compressed one meanwhile."""

    def exhausted(self, text: str) -> None:
        """Ends the call with RESOURCE_EXHAUSTED. Its turn is done when the core says so: until then it has memory."""

    def cut_off(self) -> None:
        """Ends the call at once, whether its client gets a status or not."""


class _Peer:
    """A connection: the size that its next message is expected to have, and its calls that wait."""

    __slots__ = ("expected", "name", "reading", "waiting")

    def __init__(self, name: bytes, expected: int) -> None:
        self.name = name
        # 0: not known.
        self.expected = expected
        self.reading = 0
        self.waiting: deque[Turn] = deque()


class Turn:
    """One message of one call: waiting to be asked for, on its way, or done."""

    __slots__ = ("ended", "expected", "is_new", "peer", "reader", "started")

    def __init__(self, peer: _Peer, reader: Reader) -> None:
        self.peer = peer
        self.reader = reader
        self.expected = 0
        self.started = 0.0
        self.is_new = False
        # When its call was ended before the message had come; 0: it was not.
        self.ended = 0.0


class Receiving:
    """The messages of all calls. Use on one event loop.

    `relieve` is called again and again with the bytes that the longest waiting call needs (0: none waits), while they
    do not fit into the budget beside what requests hold. `caught_up` returns the loop's time when the last event of the
    core was handled that had come until then; None: events never wait.
    """

    def __init__(
        self,
        budget: MemoryBudget,
        max_message_bytes: int,
        pressure: MemoryPressure,
        relieve: Callable[[int], None] = lambda _: None,
        caught_up: Callable[[], float] | None = None,
    ) -> None:
        self._budget = budget
        self._max_message_bytes = max_message_bytes
        self._pressure = pressure
        self._relieve = relieve
        self._loop = asyncio.get_running_loop()
        self._caught_up = caught_up or self._loop.time
        # When the next look is due.
        self._due = 0.0
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()
        # Peers with calls that wait, each once: they take turns.
        self._queue: deque[_Peer] = deque()
        self._reading: set[Turn] = set()
        self._expected = 0
        # Whether freed memory was returned since the last large message was asked for, and when that was.
        self._clean = False
        self._large_at = 0.0
        self._trimming = False
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_looks = 0
        self._high_looks = 0

    def __repr__(self) -> str:
        waiting = sum(len(peer.waiting) for peer in self._queue)
        return f"<Receiving reading={len(self._reading)} expected={self._expected} waiting={waiting}>"

    def ask(self, peer: bytes, reader: Reader) -> Turn:
        """Has the reader's next message read, now or later, and returns the turn, which `done` has to end."""
        entry = self._peer(peer)
        turn = Turn(entry, reader)
        if not entry.waiting and self._fits(entry):
            self._start(turn)
        else:
            if not entry.waiting:
                self._queue.append(entry)
            entry.waiting.append(turn)
            self.watch()
        return turn

    def done(self, turn: Turn, size: int | None) -> None:
        """Ends a turn: the message has come with `size` bytes, or none will (None). Further calls do nothing."""
        peer = turn.peer
        if turn in self._reading:
            self._reading.discard(turn)
            peer.reading -= 1
            self._expected -= turn.expected
            if size is not None:
                faded = peer.expected * _FADING
                peer.expected = min(self._max_message_bytes, int(max(_LEAST_BYTES, size * _MARGIN, faded)))
            self.advance()
        else:
            self.withdraw(turn)

    def withdraw(self, turn: Turn) -> None:
        """Forgets a turn that waits: its call has ended."""
        peer = turn.peer
        if turn in peer.waiting:
            peer.waiting.remove(turn)
            if not peer.waiting:
                self._queue.remove(peer)

    def advance(self) -> None:
        """Asks for the messages that fit by now, one of each connection in turn. Call it when memory was given back."""
        if not self._queue or self._pressure.is_high:
            return
        passed: list[_Peer] = []
        served: list[_Peer] = []
        while self._queue:
            peer = self._queue.popleft()
            if not self._fits(peer):
                passed.append(peer)
                if peer.expected:
                    break
                # A new connection needs much room, or has a message on its way: others may fit.
                continue
            if len(peer.waiting) > 1:
                served.append(peer)
            self._start(peer.waiting.popleft())
        # Who was served goes behind all who were not, or silent connections would always be first.
        self._queue.extendleft(reversed(passed))
        self._queue.extend(served)

    def _peer(self, name: bytes) -> _Peer:
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = _Peer(name, 0)
            if len(self._peers) > _MOST_PEERS:
                self._forget()
        return peer

    def _forget(self) -> None:
        for name, peer in list(self._peers.items())[: _MOST_PEERS // 4]:
            if not peer.reading and not peer.waiting:
                del self._peers[name]

    def _fits(self, peer: _Peer) -> bool:
        if not peer.expected and peer.reading:
            return False
        size = memory_of(peer.expected or self._max_message_bytes)
        is_alone = not self._reading and not self._budget.held_bytes
        if not is_alone and (self._pressure.is_high or not self._budget.has_room(self._expected + size)):
            return False
        return size <= _LARGE_BYTES or self._is_clean(size)

    def _is_clean(self, size: int) -> bool:
        """Returns whether freed memory was returned, if `size` more bytes need that; if not, has it returned."""
        if self._clean or self._pressure.leaves_room(size):
            return True
        if not self._trimming:
            self._trimming = True
            self._pressure.trim().add_done_callback(self._on_trimmed)
        return False

    def _on_trimmed(self, _: object) -> None:
        self._trimming, self._clean = False, True
        self.advance()

    def _start(self, turn: Turn) -> None:
        peer = turn.peer
        turn.is_new = not peer.expected
        turn.expected = memory_of(peer.expected or self._max_message_bytes)
        turn.started = self._loop.time()
        if turn.expected > _LARGE_BYTES:
            self._clean = False
            self._large_at = turn.started
        peer.reading += 1
        self._expected += turn.expected
        self._reading.add(turn)
        self.watch()
        turn.reader.read(aside=turn.is_new or turn.expected > _LARGE_BYTES)

    def watch(self) -> None:
        """Looks at the memory from now on until nothing is on its way."""
        self._quiet_looks = 0
        if self._timer is None:
            self._look_soon()

    def _look_soon(self) -> None:
        self._due = self._loop.time() + _LOOK_S
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._pressure.look():
            self._high_looks += 1
            slow = self._older(_SLOW_S)
            # A stream that waits for its next message looks the same as one whose message is on its way. So streams end
            # only if memory is not free again soon.
            if self._high_looks < _PATIENT_LOOKS:
                slow = [turn for turn in slow if not turn.reader.is_stream]
            self._end(slow, "the server has no memory for messages that are large or arrive slowly")
        elif self._queue:
            patience_s = max(_LEAST_PATIENCE_S, _PATIENCE_S / (1 + len(self._queue) / _MANY))
            silent = [turn for turn in self._older(patience_s) if turn.is_new]
            self._end(silent, f"no whole message came within {patience_s:.1f} s while other requests waited")
            self.advance()
        if not self._pressure.is_high:
            self._high_looks = 0
        for turn in self._reading:
            if turn.ended and self._due - turn.ended > _CUT_OFF_S:
                turn.reader.cut_off()
        if not self._budget.has_room(wanted := self._wanted()):
            self._relieve(wanted)
        self._pressure.trim_if_worth_it(is_quiet=self._loop.time() - self._large_at > _QUIET_S)
        self._quiet_looks = 0 if self._reading or self._queue or self._budget.total_bytes else self._quiet_looks + 1
        if self._quiet_looks < _QUIET_LOOKS:
            self._look_soon()

    def _wanted(self) -> int:
        """Returns what the call that waits longest needs, and what is on its way before; 0 if no call waits."""
        if not self._queue:
            return 0
        wanted = self._expected + memory_of(self._queue[0].expected or self._max_message_bytes)
        # A message that is larger needs no more than to be alone.
        return min(wanted, self._budget.limit_bytes)

    def _older(self, seconds: float) -> list[Turn]:
        """Returns the turns whose message has not come for so long. While the loop is behind, that is not known."""
        now = self._loop.time()
        if now - self._due > _LATE_S:
            return []
        latest = min(now, self._caught_up()) - seconds
        return [turn for turn in self._reading if turn.started <= latest and not turn.ended]

    def _end(self, turns: list[Turn], text: str) -> None:
        for turn in turns:
            self._budget.refused += 1
            turn.ended = self._loop.time()
            turn.reader.exhausted(f"{text} (max_pending_mib); try again later")
