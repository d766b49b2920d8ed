"""Every command with its flags, as its own parser has them."""

import argparse
from collections.abc import Iterator
from unittest import mock

from cnnserve import cli

from .tables import code, table

_HEAD = """# Commands

All commands of `cnnserve`. `cnnserve COMMAND --help` prints the same in the terminal.

The commands of the client (`classify`, `models`, `labels`, `load`, `unload`, `health`) exit with 0 if all went well,
with 1 if something failed, and with 2 if the command line is wrong. Ctrl-C ends them with 130. `export`, `import` and
`train-lenet` use the same codes, and so do `bench` and `evaluate`, for which an image that was not judged is a failure.
`doctor` exits with 1 if there is a problem.

"""


class _Parsed(Exception):
    """A command came to its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def page() -> str:
    """The page."""
    commands = [(name, command.help, _parser(name)) for name, command in cli._COMMANDS.items()]
    on_ray = _parser("classify", "--ray")
    overview = table(
        ("Command", "What it does"), [(f"[`cnnserve {name}`](#{name})", help_text) for name, help_text, _ in commands]
    )
    sections = [(name, parser) for name, _, parser in commands] + [("classify --ray", on_ray)]
    return _HEAD + overview + "".join(f"\n{_section(name, parser)}" for name, parser in sections)


def _parser(name: str, *flags: str) -> argparse.ArgumentParser:
    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise _Parsed(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            cli.main([name, *flags])
        except _Parsed as parsed:
            return parsed.parser
    raise RuntimeError(f"cnnserve {name} reads no arguments")


def _section(name: str, parser: argparse.ArgumentParser) -> str:
    parts = [f"## {name}\n", f"{parser.description}\n"]
    for group in parser._action_groups:
        rows = list(_rows(parser, group))
        if rows:
            # argparse's own two groups say nothing that the table does not.
            own = group.title in ("positional arguments", "options")
            about = f"{group.title}{f': {group.description}' if group.description else ''}"
            parts += [] if own else [f"\n{about.capitalize()}\n"]
            parts.append("\n" + table(("Argument", "Meaning"), rows))
    return "".join(parts)


def _rows(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup) -> Iterator[tuple[str, str]]:
    formatter = parser._get_formatter()
    for action in group._group_actions:
        if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        name = action.option_strings[0] if action.option_strings else ""
        metavar = formatter._get_default_metavar_for_optional(action)
        value = "" if action.nargs == 0 else formatter._format_args(action, metavar)
        help_text = formatter._expand_help(action) if action.help else ""
        yield code(" ".join(filter(None, (name, value)))), help_text
