"""A `cnnserve serve` that counts nothing for its metrics; only `metrics.py` starts it. The flags are the server's."""

import sys

from cnnserve import cli
from cnnserve.batching.statistics import Statistics


def _count_nothing(*_: object, **__: object) -> None:
    """Takes what would be counted."""


def main() -> int:
    """Runs the server."""
    Statistics.ran = _count_nothing  # type: ignore[method-assign]
    Statistics.answered = _count_nothing  # type: ignore[method-assign]
    return cli.main([*sys.argv[sys.argv.index("serve") :], "--no-drift-metrics"])


if __name__ == "__main__":
    sys.exit(main())
