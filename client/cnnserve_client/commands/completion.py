"""Shell completion: the command `cnnserve completion`, and the completions that a shell requests. Needs argcomplete.

The code that `cnnserve completion` prints runs `cnnserve` with the variable _ARGCOMPLETE whenever the user presses Tab.
"""

import argparse
import importlib
import os
from collections.abc import Mapping, Sequence

import argcomplete
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from .flags import Parser

_CLIENT = "cnnserve_client.commands.cli"
# The function that returns the parser of each command.
_PARSERS = {
    "serve": ("cnnserve.config.sources", "serve_parser"),
    "doctor": ("cnnserve.doctor.cli", "doctor_parser"),
    "export": ("cnnserve_export.flags", "export_parser"),
    "import": ("cnnserve_export.flags", "import_parser"),
    "train-lenet": ("cnnserve_export.flags", "train_parser"),
    "tune": ("cnnserve.tools.tuning.flags", "tune_parser"),
    "copy": ("cnnserve_export.flags", "copy_parser"),
    "upgrade": ("cnnserve_export.flags", "upgrade_parser"),
    "sign": ("cnnserve_export.flags", "sign_parser"),
    "verify": ("cnnserve.trust.verify", "verify_parser"),
    "show": ("cnnserve.repository.show", "show_parser"),
    "pack": ("cnnserve.sources.command", "pack_parser"),
    "pull": ("cnnserve.sources.command", "pull_parser"),
    "token": ("cnnserve.access.command", "token_parser"),
    "classify": (_CLIENT, "classify_parser"),
    "models": (_CLIENT, "models_parser"),
    "labels": (_CLIENT, "labels_parser"),
    "evaluate": ("cnnserve.tools.evaluation.cli", "evaluate_parser"),
    "bench": ("cnnserve.tools.bench.cli", "bench_parser"),
    "load": (_CLIENT, "load_parser"),
    "unload": (_CLIENT, "unload_parser"),
    "health": (_CLIENT, "health_parser"),
    "completion": ("cnnserve_client.commands.completion", "completion_parser"),
}


def completion(arguments: Sequence[str]) -> int:
    """Runs `cnnserve completion`: prints the code that switches completion on in a shell. Returns 0."""
    print(shellcode(["cnnserve"], shell=completion_parser().parse_args(arguments).shell))
    return 0


def completion_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve completion`."""
    parser = Parser(
        prog="cnnserve completion",
        description="Print the code with which a shell completes commands and flags of cnnserve.",
        epilog="""To complete in every new shell, add one line to its start file:
  ~/.bashrc                    eval "$(cnnserve completion bash)"
  ~/.zshrc (after compinit)    eval "$(cnnserve completion zsh)"
  ~/.config/fish/config.fish   cnnserve completion fish | source""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="name of the shell")
    return parser


def complete(commands: Mapping[str, str]) -> None:
    """Writes the completions of the command line in the variable COMP_LINE to the shell, and exits.

    Args:
        commands: the help of each command. The module of a command is imported only to complete its arguments.
    """
    # The number of words up to the program: 1 for `cnnserve`, 3 for `python -m cnnserve`.
    start = int(os.environ["_ARGCOMPLETE"])
    _, _, _, words, _ = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    command = words[start] if len(words) > start else ""
    if command in _PARSERS:
        # argcomplete counts the command as a part of the program and completes the words after it.
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        module, function = _PARSERS[command]
        parser = getattr(importlib.import_module(module), function)()
    else:
        parser = _main_parser(commands)
    argcomplete.autocomplete(parser)


def _main_parser(commands: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("-V", "--version", action="store_true", help="print the version")
    names = parser.add_subparsers()
    for name, text in commands.items():
        names.add_parser(name, help=text)
    return parser
