"""import-linter in a process that stays: importing it takes longer than it needs for the contracts.

`python linting.py CONFIG CACHE` is this process. For each line that it reads, a JSON list of contracts (none: all), it
lints the packages of its working directory. It answers with a line: JSON of the exit code and the report.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from importlinter.cli import lint_imports


class Linter:
    """The other side of this process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, *contracts: str) -> tuple[int, str]:
        """Returns exit code and report of import-linter, over these contracts or all."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(contracts), file=self._process.stdin, flush=True)
        code, report = json.loads(self._process.stdout.readline())
        return code, report


@contextlib.contextmanager
def linter(packages: Path, config: Path, environment: dict[str, str]) -> Iterator[Linter]:
    """Yields a linter for the packages of a folder."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(config), str(packages / ".cache")],
        cwd=packages,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Linter(process)
        process.communicate()


def _main() -> None:
    config, cache = sys.argv[1:]
    for line in sys.stdin:
        with contextlib.redirect_stdout(io.StringIO()) as report:
            code = lint_imports(config, tuple(json.loads(line)), cache_dir=cache)
        print(json.dumps((code, report.getvalue())), flush=True)


if __name__ == "__main__":
    _main()
