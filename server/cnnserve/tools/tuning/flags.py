"""The command line of `cnnserve tune`. Completion reads it without the rest."""

import argparse
from pathlib import Path

from cnnserve.config.spelling import Parser


def tune_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="cnnserve tune",
        description="Measure layouts of a model on this machine (instances, threads, batches and delays) and write the "
        "best one into its config.pbtxt. No server may run beside it, because it would take part of the CPU.",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a model in a model repository")
    parser.add_argument(
        "--target-p99",
        type=_time_s,
        metavar="TIME",
        help="highest p99 with 16 requests in flight, such as 50ms (default: 1.2 times that of the present layout)",
    )
    parser.add_argument(
        "--budget", type=_time_s, default=60.0, metavar="TIME", help="time to measure, such as 60s (default: 60s)"
    )
    parser.add_argument("--cpu-threads", type=_threads, default=0, help="as --cpu-threads of serve (default: 0)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw all layouts as an SVG picture into this file")
    parser.add_argument("--dry-run", action="store_true", help="print the lines and write nothing")
    return parser


def _time_s(text: str) -> float:
    units = {"ms": 1e-3, "s": 1.0, "min": 60.0}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    number = text.removesuffix(unit)
    try:
        value = float(number) * units.get(unit, 0)
    except ValueError:
        value = 0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time, expected a number with a unit, such as 50ms, 60s, 5min")
    return value


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads, expected 0 to 1024")
    return int(text)
