# PYTHON_ARGCOMPLETE_OK
"""The `cnnserve` command.

The modules of the subcommands are imported only when they are called. So `cnnserve classify` does not need onnxruntime,
and `cnnserve serve` does not need torch. This module imports as little as it can: until `serve` has its handlers, a
SIGTERM to process 1 of a container is lost.
"""

import gc
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import cnnserve
from cnnserve import extras


class _Command:
    """A subcommand: where it is, and the extras to install if its import fails.

    It is no dataclass, because the import of dataclasses takes 6 ms.
    """

    def __init__(self, module: str, function: str, text: str, extra: str = "") -> None:
        self.module = module
        self.function = function
        self.help = text
        self.extra = extra


_COMMANDS = {
    "serve": _Command("cnnserve.cli", "serve", "serve a model repository over gRPC and HTTP", "cpu"),
    "doctor": _Command(
        "cnnserve.doctor.cli", "doctor", "check this machine, its settings and a model repository, and say what to do"
    ),
    "export": _Command(
        "cnnserve_export.cli", "export", "convert, check and publish a PyTorch network as a version", "cpu,export"
    ),
    "import": _Command(
        "cnnserve_export.cli", "import_onnx", "check and publish an existing ONNX file as a version", "cpu,import"
    ),
    "train-lenet": _Command(
        "cnnserve_export.cli", "train_lenet", "train LeNet-5 on scanned digits and publish it", "cpu,export,train"
    ),
    "tune": _Command(
        "cnnserve.tools.tuning.cli", "tune", "find the best layout of a model on this machine and write it down", "cpu"
    ),
    "copy": _Command("cnnserve_export.cli", "copy", "publish a copy of a version under another name or number", "cpu"),
    "upgrade": _Command(
        "cnnserve_export.cli", "upgrade", "publish a version of contract 1 again, with contract 2", "cpu"
    ),
    "sign": _Command(
        "cnnserve_export.cli", "sign", "sign a version, or the files of a model beside its versions", "signing"
    ),
    "verify": _Command(
        "cnnserve.trust.verify", "verify", "check the signatures of versions and models with trusted keys", "trust"
    ),
    "show": _Command(
        "cnnserve.repository.show", "show", "print a version's manifest and compare its files with their digests"
    ),
    "pack": _Command("cnnserve.sources.command", "pack", "make a pack of a version, for registries and other machines"),
    "pull": _Command(
        "cnnserve.sources.command", "pull", "publish versions from a pack, a registry, an object store or a web server"
    ),
    "token": _Command("cnnserve.access.command", "main", "make a token for --tokens-file of serve"),
    "classify": _Command("cnnserve_client.commands.cli", "classify", "classify images with a running server"),
    "models": _Command("cnnserve_client.commands.cli", "models", "list the models on a running server"),
    "labels": _Command("cnnserve_client.commands.cli", "labels", "list the labels of a model on a running server"),
    "evaluate": _Command(
        "cnnserve.tools.evaluation.cli", "evaluate", "judge a model on labelled images, or compare two models", "cpu"
    ),
    "bench": _Command(
        "cnnserve.tools.bench.cli", "bench", "put load on a server and measure throughput and latency", "cpu,plot"
    ),
    "load": _Command(
        "cnnserve_client.commands.cli", "load", "load a model, or its changed versions, on a running server"
    ),
    "unload": _Command("cnnserve_client.commands.cli", "unload", "unload a model on a running server"),
    "health": _Command(
        "cnnserve_client.commands.cli", "health", "exit with status 0 if a running server or a model is SERVING"
    ),
    "completion": _Command(
        "cnnserve_client.commands.completion",
        "completion",
        "print the code for completion in bash, zsh or fish",
        "completion",
    ),
}
# `cnnserve classify --ray`, which needs no server.
_CLASSIFY_ON_RAY = _Command("cnnserve.tools.offline.cli", "classify", "", "cpu,ray")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status."""
    _open_standard_streams()
    if "_ARGCOMPLETE" in os.environ:  # a shell requests completions
        completion = importlib.import_module(_COMMANDS["completion"].module)
        completion.complete({name: command.help for name, command in _COMMANDS.items()})
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version", "version"):
        print(f"cnnserve {cnnserve.__version__}")
        return 0
    if extras.image() and words[0].startswith("-"):
        # `docker run IMAGE --grpc-port 9001`: the arguments of a container replace the word "serve".
        words.insert(0, "serve")
    command = _CLASSIFY_ON_RAY if words[0] == "classify" and "--ray" in words else _COMMANDS.get(words[0])
    if command is None:
        spelling = importlib.import_module("cnnserve.config.spelling")
        guess = spelling.guess(words[0], _COMMANDS)
        print(f"cnnserve: unknown command {words[0]!r}{guess} (see cnnserve --help)", file=sys.stderr)
        return 2
    # The others read files in ways that Windows does not have (fcntl, and folders that are opened as files).
    if sys.platform == "win32" and not command.module.startswith("cnnserve_client."):
        print(
            f"cnnserve {words[0]} does not run on Windows; run it in WSL (Windows Subsystem for Linux) or in a "
            "container",
            file=sys.stderr,
        )
        return 1
    try:
        function = getattr(importlib.import_module(command.module), command.function)
        return int(function(words[1:]))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not command.extra or missing.startswith("cnnserve"):
            raise
        print(
            f"cnnserve {words[0]} needs {missing}, which is not installed: {extras.install(command.extra)}",
            file=sys.stderr,
        )
        return 1


def serve(arguments: Sequence[str]) -> int:
    """Runs `cnnserve serve` and returns its exit status: 0, 1 if it cannot listen, 2 for a bad setting.

    With `--dry-run`, 1 means that a model cannot be served.
    """
    _end_at_signals()
    from cnnserve.config.settings import Address, ConfigError
    from cnnserve.config.sources import build, doubts, gather, serve_parser

    flags = vars(serve_parser().parse_args(arguments))
    try:
        settings = gather(flags)
        config = build(settings)
        doubtful = doubts(flags)
    except ConfigError as error:
        print(f"cnnserve serve: {error}", file=sys.stderr)
        return 2
    if flags["print_config"]:
        print(importlib.import_module("cnnserve.doctor.effective").toml(settings))
        return 0
    # Imported objects stay until the exit. If the garbage collector searched them, that would take 40 ms of the start
    # and 20 ms of a later request.
    gc.disable()
    try:
        import logging

        from cnnserve import app, logs
    finally:
        gc.freeze()
        gc.enable()
    logs.configure(config.log_level, config.log_format)
    for doubt in doubtful:
        logging.getLogger(__name__).warning("%s", doubt)
    if isinstance(config.repository, Address) and not config.model:
        serving = importlib.import_module("cnnserve.sources.serving")
        config, code = serving.pulled(config)
        if code:
            return int(code)
    if flags["dry_run"]:
        return int(importlib.import_module("cnnserve.doctor.dry_run").run(config))
    return app.run(config)


def _open_standard_streams() -> None:
    """Opens standard streams that are closed. Otherwise the next file or connection would take their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number, which is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _end_at_signals() -> None:
    """Until the server runs, SIGTERM and SIGINT exit at once, because there is nothing to clean up.

    As process 1 of a container, Python would ignore SIGTERM without a handler, and an exception in it would break a
    running import. SIGHUP has nothing to do yet, except if the terminal was closed.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        on_terminal = os.isatty(0)
        signal.signal(signal.SIGHUP, lambda *_: os._exit(0) if on_terminal else None)


def _usage() -> str:
    width = max(map(len, _COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in _COMMANDS.items())
    return f"usage: cnnserve COMMAND ...\n\n{lines}\n\nFor the help of a command, run cnnserve COMMAND --help."
