"""The client's commands: flags, exit codes and what is printed.

Exit codes: 0 all well; 1 something failed, said on standard error; 2 wrong usage; 130 interrupted; 141 the reader of
our output went away. grpc and numpy are imported by the command that runs, so `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from . import report, terminal
from .errors import CnnserveError, InvalidInputError
from .security import Tls
from .target import DEFAULT_ADDRESS, checked_timeout

if TYPE_CHECKING:
    from .client import Client

_TOKEN_VARIABLE = "CNNSERVE_TOKEN"  # noqa: S105 - the variable's name


def classify(argv: list[str]) -> int:
    """Classify images and print a table, JSON lines or CSV. Exits 1 if an image failed."""
    from . import classifying

    parser = _parser("classify", "Classify images with a served model.", timeout_s=30.0)
    classifying.add_flags(parser)
    args = parser.parse_args(argv)
    classifying.check_flags(parser, args)
    return guard(lambda: classifying.run(args, parser))


def health(argv: list[str]) -> int:
    """Exit 0 if the server, or one model, is ready for requests, else 1 with a line that says why not."""
    parser = _parser("health", "Check that a server, or one of its models, is ready for requests.", timeout_s=5.0)
    parser.add_argument("--model", default="", help="check this model (default: the server as a whole)")
    args = parser.parse_args(argv)
    return guard(lambda: _health(args))


def models(argv: list[str]) -> int:
    """List the server's models and their versions as a table or JSON."""
    parser = _parser("models", "List a server's models and their versions.", timeout_s=5.0)
    _add_json(parser)
    args = parser.parse_args(argv)
    return guard(lambda: _models(args))


def labels(argv: list[str]) -> int:
    """List a model's classes, index and label."""
    parser = _parser("labels", "List the classes of a model: index and label.", timeout_s=5.0)
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    parser.add_argument("--version", default="", help="a version of the model (default: the newest that is ready)")
    _add_json(parser)
    args = parser.parse_args(argv)
    return guard(lambda: _labels(args))


def load(argv: list[str]) -> int:
    """Load a model of the server's repository and print it as `models` does."""
    return _change("load", "Load a model of the server's repository, or load again what changed there.", argv)


def unload(argv: list[str]) -> int:
    """Unload a model and print what is left of it."""
    return _change("unload", "Unload a model after its requests in flight are answered.", argv)


def _change(command: Literal["load", "unload"], description: str, argv: list[str]) -> int:
    parser = _parser(command, description, timeout_s=600.0)
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    _add_json(parser)
    args = parser.parse_args(argv)
    return guard(lambda: _changed(args, command))


def _parser(command: str, description: str, *, timeout_s: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"cnnserve {command}", description=description, allow_abbrev=False)
    parser.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        metavar="HOST:PORT",
        help="the server's gRPC port; several with commas between them (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout-s", type=_seconds, default=timeout_s, metavar="S", help="seconds per request (default: %(default)g)"
    )
    secure = parser.add_argument_group("encryption and identity")
    secure.add_argument("--tls", action="store_true", help="encrypt; the flags below with a certificate do so, too")
    secure.add_argument("--root-certificates", metavar="FILE", help="PEM file that vouches for the server")
    secure.add_argument("--certificate", metavar="FILE", help="this client's certificate, PEM")
    secure.add_argument("--key", metavar="FILE", help="its key, PEM")
    secure.add_argument(
        "--token-file", metavar="FILE", help=f"holds the token to send (default: the variable {_TOKEN_VARIABLE})"
    )
    secure.add_argument(
        "--token-over-plain-text", action="store_true", help="send it to other machines without encryption, too"
    )
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _seconds(text: str) -> float:
    try:
        return checked_timeout(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 seconds") from error


def connect(args: argparse.Namespace, **settings: Any) -> "Client":
    """A client as the flags ask for it. Raises `InvalidInputError` for those that cannot be."""
    from .client import Client

    tls = Tls(args.root_certificates, args.certificate, args.key) if _names_tls(args) else args.tls
    return Client(
        args.address,
        timeout_s=args.timeout_s,
        tls=tls,
        token=_token(args),
        token_over_plain_text=args.token_over_plain_text,
        **settings,
    )


def _names_tls(args: argparse.Namespace) -> bool:
    return any((args.root_certificates, args.certificate, args.key))


def _token(args: argparse.Namespace) -> str:
    # Never a flag: other users of the machine see the flags of a process.
    if args.token_file is None:
        return os.environ.get(_TOKEN_VARIABLE, "")
    try:
        return Path(args.token_file).read_text().strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InvalidInputError(f"token-file: cannot read {args.token_file!r}: {reason}") from error


def _health(args: argparse.Namespace) -> int:
    with connect(args, retries=0) as client:
        serving = client.is_healthy(args.model)
    if not serving:
        complain(f"{f'model {args.model} at ' if args.model else ''}{args.address} is NOT_SERVING")
        return 1
    say("SERVING")
    return 0


def _models(args: argparse.Namespace) -> int:
    with connect(args, retries=0) as client:
        every = client.list_models()
    say(report.models_json(every) if args.json else report.models_table(every))
    return 0


def _labels(args: argparse.Namespace) -> int:
    from .limits import ready_versions

    with connect(args, retries=0) as client:
        versions = ready_versions(client.get_model(args.model), args.version)
    newest = max(versions, key=lambda version: int(version.version) if version.version.isdecimal() else 0)
    if not newest.labels:
        complain(f"model {args.model} version {newest.version} has no labels, only {newest.class_count} classes")
        return 1
    say(report.labels_json(newest.labels) if args.json else report.labels_table(newest.labels))
    return 0


def _changed(args: argparse.Namespace, command: Literal["load", "unload"]) -> int:
    with connect(args, retries=0) as client:
        model = client.load_model(args.model) if command == "load" else client.unload_model(args.model)
    say(report.models_json([model]) if args.json else report.models_table([model]))
    return 0


def guard(command: Callable[[], int]) -> int:
    """Run a command; what a user can cause ends in one line, not in a traceback."""
    try:
        status = command()
        sys.stdout.flush()  # here, where a broken pipe can still be handled
    except CnnserveError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except OSError as error:  # standard output; what can happen to files and connections was caught nearer by
        # The interpreter flushes once more on its way out and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        complain(f"cannot write the output: {error.strerror}")
        return 1
    return status


def complain(text: str) -> None:
    """One line on standard error."""
    start = terminal.red("error:") if terminal.has_colours(sys.stderr) else "error:"
    say(f"{start} {report.printable(text)}", sys.stderr)


def say(text: str, stream: TextIO | None = None) -> None:
    """A line, or several; what the stream cannot show is escaped."""
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, errors="backslashreplace").decode(encoding), file=stream)
