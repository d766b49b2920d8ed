"""Counts what was refused, and writes audit lines: one a second and address, with a count."""

import asyncio
import logging
from collections import Counter

from cnnserve.logs import AUDIT

_audit = logging.getLogger(AUDIT)
_INTERVAL_S = 1.0
# More addresses than that share a line.
_MOST_ADDRESSES = 100
_OTHERS = "others"


class Refusals:
    """Refused calls. Use on one event loop."""

    def __init__(self) -> None:
        # By outcome, since the start.
        self.counts: Counter[str] = Counter()
        # By address: refusals since its last line, and the text of the newest.
        self._unwritten: dict[str, tuple[int, str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, address: str, who: str, what: str, outcome: str) -> None:
        """Counts one refusal. Its line comes at once if the address had none in the last second."""
        self.counts[outcome] += 1
        if address not in self._unwritten and len(self._unwritten) >= _MOST_ADDRESSES:
            address = _OTHERS
        text = f"who={who!r} what={what!r} from={address} outcome={outcome}"
        if address in self._unwritten:
            self._unwritten[address] = (self._unwritten[address][0] + 1, text)
            return
        self._unwritten[address] = (0, text)
        _audit.warning("refused: %s count=1", text)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self._write)

    def _write(self) -> None:
        for address, (count, text) in list(self._unwritten.items()):
            if not count:
                del self._unwritten[address]
                continue
            _audit.warning("refused: %s count=%d", text, count)
            self._unwritten[address] = (0, text)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_INTERVAL_S, self._write) if self._unwritten else None
