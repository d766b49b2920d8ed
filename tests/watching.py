"""How much memory a server takes at most while it is attacked."""

import contextlib
import threading
from pathlib import Path

from support import RunningServer

MIB = 2**20


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MIB


class Watched:
    """A server, and how much larger than idle it was at most."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.idle_mib = resident_mib(server.process.pid)
        self.peak_mib = self.idle_mib
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            with contextlib.suppress(OSError, IndexError):
                self.peak_mib = max(self.peak_mib, resident_mib(self.server.process.pid))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def grown_mib(self) -> float:
        return self.peak_mib - self.idle_mib
