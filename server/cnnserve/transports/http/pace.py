"""How fast a client is: since when nothing came, a head has been coming, or its request hardly moves."""

# From a client that is slower than that, others need not wait for memory.
_SLOW_BYTES = 2**16


class Pace:
    """The times of one connection, in seconds of the event loop's clock. `now` is when it began."""

    def __init__(self, now: float) -> None:
        self._quiet_since = now
        self._head_since: float | None = None
        # What was received and not sent at the last look, and since when neither has changed much.
        self._received = 0
        self._seen = (0, 0)
        self._stuck_since: float | None = None

    def received(self, size: int, now: float) -> None:
        """Notes that bytes came."""
        self._received += size
        self._quiet_since = now

    def parsed(self, now: float, *, in_head: bool) -> None:
        """Notes whether the bytes ended within the head of a request."""
        self._head_since = (self._head_since or now) if in_head else None

    def ended(self, now: float) -> None:
        """Notes that the server wants to close the connection: its time to linger begins."""
        self._quiet_since = now

    def look(self, unsent: int, now: float, *, works: bool) -> None:
        """Measures. `unsent`: the size of what the client has not read; `works`: it has something to send or read."""
        seen = (self._received, unsent)
        moved = max(abs(new - old) for new, old in zip(seen, self._seen, strict=True))
        if self._stuck_since is None or moved > _SLOW_BYTES or not works:
            self._seen, self._stuck_since = seen, now

    def stuck_s(self, now: float) -> float:
        """For how long the client has hardly sent or read what it has to."""
        return 0.0 if self._stuck_since is None else now - self._stuck_since

    def quiet_s(self, now: float) -> float:
        """For how long nothing has come."""
        return now - self._quiet_since

    def head_s(self, now: float) -> float:
        """For how long the head of a request has been coming."""
        return 0.0 if self._head_since is None else now - self._head_since
