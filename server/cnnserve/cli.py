"""The `cnnserve` command. Subcommands are named here and imported only when they are called.

So `cnnserve classify` needs no onnxruntime and `cnnserve serve` no torch, installed or not.
"""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import cnnserve


@dataclass(frozen=True)
class _Command:
    module: str
    function: str
    help: str
    # What to install where the import fails.
    extra: str = ""


_COMMANDS = {
    "serve": _Command("cnnserve.cli", "serve", "serve a model repository over gRPC", "cpu"),
    "export": _Command("cnnserve_export.cli", "export", "PyTorch network -> verified ONNX model", "cpu,export"),
    "import": _Command(
        "cnnserve_export.cli", "import_onnx", "ONNX file made elsewhere -> verified model", "cpu,export"
    ),
    "train-lenet": _Command("cnnserve_export.cli", "train_lenet", "train LeNet-5 on scanned digits", "cpu,export"),
    "show": _Command(
        "cnnserve.repository.show", "show", "what a model's manifest says, with its files' digests compared"
    ),
    "classify": _Command("cnnserve_client.commands.cli", "classify", "classify images with a running server"),
    "models": _Command("cnnserve_client.commands.cli", "models", "list the models of a running server"),
    "labels": _Command("cnnserve_client.commands.cli", "labels", "list the classes of a model of a running server"),
    "load": _Command(
        "cnnserve_client.commands.cli", "load", "load a model, or load again what changed, on a running server"
    ),
    "unload": _Command("cnnserve_client.commands.cli", "unload", "unload a model on a running server"),
    "health": _Command(
        "cnnserve_client.commands.cli", "health", "exit 0 if a running server (or one model) is SERVING"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        print(f"cnnserve {cnnserve.__version__}")
        return 0
    command = _COMMANDS.get(words[0])
    if command is None:
        print(f"cnnserve: no command {words[0]!r}\n\n{_usage()}", file=sys.stderr)
        return 2
    try:
        function = getattr(importlib.import_module(command.module), command.function)
        return int(function(words[1:]))
    except ModuleNotFoundError as error:
        if not command.extra or (error.name or "").partition(".")[0].startswith("cnnserve"):
            raise
        print(
            f'cnnserve {words[0]} needs {error.name}, which is not installed: pip install "cnnserve[{command.extra}]"',
            file=sys.stderr,
        )
        return 1


def serve(arguments: Sequence[str]) -> int:
    """`cnnserve serve`."""
    # Until the server is built, ending is all that a signal can mean; as process 1 of a container, Python would not
    # even hear SIGTERM. An exception would break the import it hits, and there is nothing to put in order yet.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    from cnnserve.config import ConfigError, from_sources

    try:
        config = from_sources(arguments)
    except ConfigError as error:
        print(f"cnnserve serve: {error}", file=sys.stderr)
        return 2
    # What imports make stays: looking through it for garbage takes 40 ms of the start, and 20 ms of a request later on.
    gc.disable()
    try:
        from cnnserve import app, logs
    finally:
        gc.freeze()
        gc.enable()
    logs.configure(config.log_level)
    return app.run(config)


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in _COMMANDS.items())
    return f"usage: cnnserve COMMAND ...\n\n{lines}\n\ncnnserve COMMAND --help says more."
