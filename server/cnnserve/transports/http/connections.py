"""All connections of the HTTP port: how many there may be, and which have to leave because they only wait."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from cnnserve.process.admission import MemoryBudget

_LOOK_S = 1.0
# Connections beyond the limit that may ask whether the server is live, and are told to come back otherwise.
_SPARE = 64


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections: their number, and times in seconds."""

    most: int = 1000
    # Of one address; 0: as many as in all.
    most_per_address: int = 0
    # After that time, the next response closes the connection; 0: never.
    age_s: float = 0.0
    # From the first byte of a request to the end of its headers.
    head_s: float = 10.0
    # Without a byte from the client, and without a request to answer. The pools of clients and load balancers keep
    # connections for a shorter time, so they close first, and no request is sent on a connection that is closing.
    idle_s: float = 75.0
    # Without progress of a response that the client does not read.
    unread_s: float = 30.0
    # The same, and that of a request's body, while others are refused because memory or connections are used up.
    unread_if_full_s: float = 1.0
    # For a client that still sends when its response is complete. If the server closed at once, the client's system
    # would drop the response.
    linger_s: float = 2.0


class Member(Protocol):
    """One connection."""

    @property
    def is_idle(self) -> bool:
        """Whether there is no request to answer and no response on its way."""

    @property
    def address(self) -> str:
        """Of its client, without the port."""

    @property
    def is_stuck(self) -> bool:
        """Whether its client hardly sends the body, or hardly reads the response, of its request."""

    def look(self, now: float, *, memory_is_full: bool) -> None:
        """Ends whatever takes longer than its limit."""

    def drop(self) -> None:
        """Closes the connection at once."""


class Connections:
    """The open connections, from the oldest to the newest. Use on one event loop."""

    def __init__(self, limits: ConnectionLimits, budget: MemoryBudget) -> None:
        self.limits = limits
        self._budget = budget
        self._open: dict[Member, None] = {}
        self._by_address: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None
        self._refused = budget.refused

    def __repr__(self) -> str:
        return f"<Connections open={len(self._open)} most={self.limits.most}>"

    @property
    def is_full(self) -> bool:
        """Whether there are more connections than allowed, so that only the question for liveness is answered."""
        return len(self._open) > self.limits.most

    def opened(self, member: Member) -> None:
        """Adds a connection. If there are too many, closes the newest one that only waits, or one that is stuck.

        If the client's address has its connections, closes the new one.
        """
        most = self.limits.most_per_address
        if most and self._by_address[member.address] >= most:
            member.drop()
            return
        if len(self._open) >= self.limits.most:
            other = next((one for one in reversed(self._open) if one.is_idle), None)
            other = other or next((one for one in self._open if one.is_stuck), None)
            if other is not None:
                self.closed(other)
                other.drop()
            elif len(self._open) >= self.limits.most + _SPARE:
                member.drop()
                return
        self._open[member] = None
        self._by_address[member.address] += 1
        if self._timer is None:
            self._refused = self._budget.refused
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def closed(self, member: Member) -> None:
        """Forgets a connection."""
        if member not in self._open:
            return
        del self._open[member]
        self._by_address[member.address] -= 1
        if not self._by_address[member.address]:
            del self._by_address[member.address]

    def drop_all(self) -> None:
        """Closes every connection at once."""
        for member in list(self._open):
            member.drop()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        memory_is_full = self._budget.refused != self._refused
        self._refused = self._budget.refused
        for member in list(self._open):
            member.look(loop.time(), memory_is_full=memory_is_full)
        self._timer = loop.call_later(_LOOK_S, self._look) if self._open else None
