"""`cnnserve classify`, `health`, `models`, `load` and `unload`: flags, exit codes and what is printed.

Exit codes: 0 all well; 1 something failed, said on standard error; 2 wrong usage; 130 interrupted; 141 the reader of
our output went away. grpc and numpy are imported by the command that runs, so `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TextIO

from . import report
from .errors import CnnserveError, UnavailableError
from .target import DEFAULT_ADDRESS, checked_timeout

if TYPE_CHECKING:
    from .client import Client


def classify(argv: list[str]) -> int:
    """Classify image files and print a table or JSON. Exits 1 if an image failed."""
    parser = _parser("classify", "Classify image files with a served model.", timeout_s=30.0)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file: JPEG, PNG, WebP, BMP or GIF")
    parser.add_argument("--model", default="", help="the model's name (default: the server's only ready model)")
    parser.add_argument("--version", default="", help="a version of the model (default: the server chooses)")
    parser.add_argument("--top-k", type=_count, default=0, metavar="K", help="classes per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    args = parser.parse_args(argv)
    return _guard(lambda: _classify(args, parser))


def health(argv: list[str]) -> int:
    """Exit 0 if the server, or one model, is ready for requests, else 1 with a line that says why not."""
    parser = _parser("health", "Check that a server, or one of its models, is ready for requests.", timeout_s=5.0)
    parser.add_argument("--model", default="", help="check this model (default: the server as a whole)")
    args = parser.parse_args(argv)
    return _guard(lambda: _health(args))


def models(argv: list[str]) -> int:
    """List the server's models and their versions as a table or JSON."""
    parser = _parser("models", "List a server's models and their versions.", timeout_s=5.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    return _guard(lambda: _models(args))


def load(argv: list[str]) -> int:
    """Load a model of the server's repository and print it as `models` does."""
    return _change("load", "Load a model of the server's repository, or load again what changed there.", argv)


def unload(argv: list[str]) -> int:
    """Unload a model and print what is left of it."""
    return _change("unload", "Unload a model after its requests in flight are answered.", argv)


def _change(command: Literal["load", "unload"], description: str, argv: list[str]) -> int:
    parser = _parser(command, description, timeout_s=600.0)
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    return _guard(lambda: _changed(args, command))


def _parser(command: str, description: str, *, timeout_s: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cnnserve {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="the server's gRPC port (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout-s", type=_seconds, default=timeout_s, metavar="S", help="seconds per request (default: %(default)g)"
    )
    return parser


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of classes")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return checked_timeout(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 seconds") from error


def _classify(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from .client import Client
    from .files import classify_files

    with Client(args.address, timeout_s=args.timeout_s) as client:
        model = args.model or _only_model(client, args, parser)
        outcome = classify_files(client, args.images, model=model, version=args.version, top_k=args.top_k)
    _print(report.classification_json(outcome) if args.json else report.classification_table(outcome))
    for path, error in outcome.failures:
        _complain(f"{path}: {error}")
    return 1 if outcome.failures else 0


def _only_model(client: "Client", args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    every = client.list_models()
    ready = [model.name for model in every if model.ready]
    if not ready:
        raise UnavailableError(f"{args.address} has no ready model; `cnnserve models` says why")
    if len(ready) > 1:
        parser.error(report.printable(f"--model is needed: {args.address} serves {', '.join(ready)}"))
    return ready[0]


def _health(args: argparse.Namespace) -> int:
    from .client import Client

    with Client(args.address, timeout_s=args.timeout_s) as client:
        serving = client.is_healthy(args.model)
    if not serving:
        _complain(f"{f'model {args.model} at ' if args.model else ''}{args.address} is NOT_SERVING")
        return 1
    _print("SERVING")
    return 0


def _models(args: argparse.Namespace) -> int:
    from .client import Client

    with Client(args.address, timeout_s=args.timeout_s) as client:
        every = client.list_models()
    _print(report.models_json(every) if args.json else report.models_table(every))
    return 0


def _changed(args: argparse.Namespace, command: Literal["load", "unload"]) -> int:
    from .client import Client

    with Client(args.address, timeout_s=args.timeout_s) as client:
        model = client.load_model(args.model) if command == "load" else client.unload_model(args.model)
    _print(report.models_json([model]) if args.json else report.models_table([model]))
    return 0


def _guard(command: Callable[[], int]) -> int:
    """Run a command; what a user can cause ends in one line, not in a traceback."""
    try:
        status = command()
        sys.stdout.flush()  # here, where a broken pipe can still be handled
    except CnnserveError as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except OSError as error:  # standard output; what can happen to files and connections was caught nearer by
        # The interpreter flushes once more on its way out and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        _complain(f"cannot write the output: {error.strerror}")
        return 1
    return status


def _complain(text: str) -> None:
    _print(report.printable(f"error: {text}"), sys.stderr)


def _print(text: str, stream: TextIO | None = None) -> None:
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=stream)
