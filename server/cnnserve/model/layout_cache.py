"""The layouts that were found by themselves, in a folder: one small file for each network, processor and CPU budget."""

import hashlib
import json
import tempfile
from pathlib import Path

from cnnserve.model_config.layout import Layout
from cnnserve.process.cpu import processor
from cnnserve.repository.staging import replace_file
from cnnserve.runtime.session import runtime_version

# A layout of many threads is one for another machine.
_LARGEST = 65536


class LayoutCache:
    """Layouts by the digest of a network. `by_default`: also of models whose config does not ask for one.

    `cpu_threads`: the CPU budget of one model.
    """

    def __init__(self, folder: Path, cpu_threads: int, *, by_default: bool = False) -> None:
        self.folder = folder.expanduser()
        self.by_default = by_default
        self.cpu_threads = cpu_threads

    def get(self, digest: str) -> Layout | None:
        """Returns the layout of a network; None if it was not found yet, or if its file is broken."""
        try:
            read = json.loads(self._file(digest).read_bytes())
            layout = Layout(*(read[name] for name in ("instances", "threads", "batch", "delay_us")))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        numbers = (layout.instances, layout.threads, layout.batch)
        sound = all(type(number) is int and 1 <= number <= _LARGEST for number in numbers) and layout.delay_us == 0
        return layout if sound and layout.instances <= self.cpu_threads >= layout.threads else None

    def put(self, digest: str, layout: Layout) -> None:
        """Keeps the layout of a network. Raises `OSError`."""
        self.check()
        names = ("instances", "threads", "batch", "delay_us")
        data: dict[str, int | str] = {name: getattr(layout, name) for name in names}
        data |= {"processor": processor(), "cpu_threads": self.cpu_threads}
        replace_file(self._file(digest), json.dumps(data).encode())

    def check(self) -> None:
        """Raises `OSError` unless the folder can be written. Creates it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def _file(self, digest: str) -> Path:
        key = "\n".join((digest, processor(), str(self.cpu_threads), runtime_version()))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
