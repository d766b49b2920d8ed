"""The client's commands: flags, exit codes and what is printed.

Exit codes: 0 all well; 1 something failed, said on standard error; 2 wrong usage; 130 interrupted; 141 the reader of
our output went away. grpc and numpy are imported by the command that runs, so `--help` answers at once.
"""

import argparse
from typing import Literal

from cnnserve_client.limits import ready_versions

from . import classifying, report
from .console import complain, guard, say
from .flags import client_parser, connect


def classify(argv: list[str]) -> int:
    """Classify images and print a table, JSON lines or CSV. Exits 1 if an image failed."""
    parser = client_parser("classify", "Classify images with a served model.", timeout_s=30.0)
    classifying.add_flags(parser)
    args = parser.parse_args(argv)
    classifying.check_flags(parser, args)
    return guard(lambda: classifying.run(args, parser))


def health(argv: list[str]) -> int:
    """Exit 0 if the server, or one model, is ready for requests, else 1 with a line that says why not."""
    parser = client_parser("health", "Check that a server, or one of its models, is ready for requests.", timeout_s=5.0)
    parser.add_argument("--model", default="", help="check this model (default: the server as a whole)")
    args = parser.parse_args(argv)
    return guard(lambda: _health(args))


def models(argv: list[str]) -> int:
    """List the server's models and their versions as a table or JSON."""
    parser = client_parser("models", "List a server's models and their versions.", timeout_s=5.0)
    _add_json(parser)
    args = parser.parse_args(argv)
    return guard(lambda: _models(args))


def labels(argv: list[str]) -> int:
    """List a model's classes, index and label."""
    parser = client_parser("labels", "List the classes of a model: index and label.", timeout_s=5.0)
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
    parser = client_parser(command, description, timeout_s=600.0)
    parser.add_argument("model", metavar="MODEL", help="the model's name")
    _add_json(parser)
    args = parser.parse_args(argv)
    return guard(lambda: _changed(args, command))


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


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
