"""The commands of the client: flags, output and exit status.

Exit status: 0 success; 1 an error, named on standard error; 2 wrong usage; 130 interrupted with Ctrl-C; 141 the reader
of standard output has closed it. A command imports grpc only when it runs, so that `--help` does not wait for it.
"""

import argparse
from typing import Literal

from cnnserve_client.limits import newest, ready_versions

from . import classifying, nearby, report
from .console import complain, guard, say
from .flags import client_parser, connect


def classify(argv: list[str]) -> int:
    """Classifies images and prints a table, JSON lines or CSV. Returns the exit status: 1 if an image failed."""
    parser = classify_parser()
    args = parser.parse_args(argv)
    classifying.check_flags(parser, args)
    return guard(lambda: classifying.run(args, parser))


def classify_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve classify`."""
    parser = client_parser("classify", "Classify images with a model of a running server.", timeout_s=30.0)
    classifying.add_flags(parser)
    parser.epilog = "Without a server, on a Ray cluster: see cnnserve classify --ray --help."
    return parser


def health(argv: list[str]) -> int:
    """Returns exit status 0 if the server or one model is SERVING, else 1 with a line on standard error."""
    args = health_parser().parse_args(argv)
    return guard(lambda: _health(args))


def health_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve health`."""
    parser = client_parser("health", "Check that a server, or one of its models, accepts requests.", timeout_s=5.0)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", default="", help="name of the model to check (default: the whole server)")
    which.add_argument(
        "--here",
        action="store_true",
        help="check the server that runs on this machine or in this container as the same user, wherever it listens "
        "(Linux; default: the server at --address)",
    )
    return parser


def models(argv: list[str]) -> int:
    """Prints the server's models and their versions as a table or JSON. Returns the exit status."""
    args = models_parser().parse_args(argv)
    return guard(lambda: _models(args))


def models_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve models`."""
    parser = client_parser("models", "List the models of a server and their versions.", timeout_s=5.0)
    _add_json(parser)
    return parser


def labels(argv: list[str]) -> int:
    """Prints the index and the label of each class of a model. Returns the exit status."""
    args = labels_parser().parse_args(argv)
    return guard(lambda: _labels(args))


def labels_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve labels`."""
    parser = client_parser("labels", "List the index and the label of each class of a model.", timeout_s=5.0)
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    parser.add_argument("--version", default="", help="number or label of the version (default: the newest READY one)")
    _add_json(parser)
    return parser


def load(argv: list[str]) -> int:
    """Loads a model of the server's repository and prints its versions. Returns the exit status."""
    args = load_parser().parse_args(argv)
    return guard(lambda: _changed(args, "load"))


def load_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve load`."""
    return _change_parser("load", "Load a model of the server's repository, or load its changed versions again.")


def unload(argv: list[str]) -> int:
    """Unloads a model and prints its versions. Returns the exit status."""
    args = unload_parser().parse_args(argv)
    return guard(lambda: _changed(args, "unload"))


def unload_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve unload`."""
    return _change_parser("unload", "Unload a model after its requests in flight have ended.")


def _change_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = client_parser(command, description, timeout_s=600.0)
    parser.add_argument("model", metavar="MODEL", help="name of the model")
    _add_json(parser)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _health(args: argparse.Namespace) -> int:
    if args.here:
        scheme, _, args.address = (url := nearby.server_url()).partition("://")
        serving = nearby.is_ready(url, args.timeout_s) if scheme != "grpc" else _is_healthy(args)
    else:
        serving = _is_healthy(args)
    if not serving:
        name = f"model {args.model} at {args.address}" if args.model else args.address
        complain(f"{name} is NOT_SERVING: run `cnnserve models` to see why")
        return 1
    say("SERVING")
    return 0


def _is_healthy(args: argparse.Namespace) -> bool:
    with connect(args, retries=0) as client:
        return client.is_healthy(args.model)


def _models(args: argparse.Namespace) -> int:
    with connect(args, retries=0) as client:
        every = client.list_models()
    say(report.models_json(every) if args.json else report.models_table(every))
    return 0


def _labels(args: argparse.Namespace) -> int:
    with connect(args, retries=0) as client:
        version = newest(ready_versions(client.get_model(args.model), args.version))
    if not version.labels:
        where = f"model {args.model} version {version.version}"
        complain(f"{where} has {version.class_count} classes without labels: add a label file to the model")
        return 1
    say(report.labels_json(version.labels) if args.json else report.labels_table(version.labels))
    return 0


def _changed(args: argparse.Namespace, command: Literal["load", "unload"]) -> int:
    with connect(args, retries=0) as client:
        model = client.load_model(args.model) if command == "load" else client.unload_model(args.model)
    say(report.models_json([model]) if args.json else report.models_table([model]))
    return 0
