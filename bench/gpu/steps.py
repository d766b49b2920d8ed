"""Runs the steps of a part until its time is over, and keeps the result of each, so that a second start goes on."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cnnserve.repository.staging import replace_file

Result = dict[str, Any]
Clock = Callable[[], float]


class OutOfTime(BaseException):
    """The time of a part is over. It is no `Exception`, so that nobody takes it for a failure of the step."""


@dataclass(frozen=True)
class Step:
    """One measurement. `seconds`: it is not begun with less time left.

    `so_far` returns what a step that was cut has measured; without it, nothing is kept of the step.
    """

    key: str
    seconds: float
    run: Callable[[], Result]
    so_far: Callable[[], Result] | None = None


class Kept:
    """The results of a part, in a file that is replaced after every step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.results: dict[str, Result] = kept.get("results", {})
        self.complete: bool = kept.get("complete", False)

    def has(self, key: str) -> bool:
        """Returns whether a step has its result. A step that failed or was cut is to be run again."""
        return key in self.results and not {"error", "cut"} & self.results[key].keys()

    def put(self, key: str, result: Result) -> None:
        """Keeps the result of a step."""
        self.results[key] = result
        self._write()

    def finish(self, *, complete: bool) -> None:
        """Keeps whether every step of the part has been run."""
        self.complete = complete
        self._write()

    @property
    def failed(self) -> list[str]:
        """The steps that failed."""
        return [key for key, result in self.results.items() if "error" in result]

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"complete": self.complete, "results": self.results}, indent=1) + "\n"
        replace_file(self._path, text.encode())


def part_end(now: float, end: float, budgets: Sequence[float]) -> float:
    """Returns when a part has to end: `budgets` are its own and those of the parts after it.

    Parts share the time that is left in proportion to their budgets. So a part leaves its rest to the later ones.
    """
    return now + max(0.0, end - now) * budgets[0] / sum(budgets)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises `OutOfTime` in the block after `seconds`. Only for the main thread."""

    def ring(*_: object) -> NoReturn:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_part(
    steps: Iterable[Step],
    kept: Kept,
    end: float,
    *,
    clock: Clock = time.monotonic,
    limit: Callable[[float], AbstractContextManager[None]] = limited,
    tell: Callable[[str, Result], None] = lambda *_: None,
    on_failure: Callable[[], None] = lambda: None,
) -> bool:
    """Runs the steps without a result until `end`, a time of `clock`. Returns whether there was time for all.

    A step that fails has its error as result, and the next one is run. `tell` gets every new result.
    """
    for step in steps:
        if kept.has(step.key):
            continue
        if clock() + step.seconds > end:
            return False
        try:
            with limit(end - clock()):
                result = step.run()
        except OutOfTime:
            on_failure()
            if step.so_far is not None:
                kept.put(step.key, step.so_far() | {"cut": True})
                tell(step.key, kept.results[step.key])
            return False
        except (Exception, SystemExit) as error:
            # The benchmarks' own failures are SystemExit with a text. With a number, it is the end of this process.
            if isinstance(error, SystemExit) and not isinstance(error.code, str):
                raise
            on_failure()
            result = {"error": f"{type(error).__name__}: {error}"}
        kept.put(step.key, result)
        tell(step.key, result)
    return True
