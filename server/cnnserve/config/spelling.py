"""Finds mistakes in what people type: flags, keys of the settings file, and environment variables."""

import argparse
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

PREFIX = "CNNSERVE_"
# An unknown variable is a mistake if it is that close to a setting: so many letters are wrong, missing or too many.
_MISTAKES = 2
# Of variables that are no settings of the server.
_OTHERS = ("CNNSERVE_CONFIG", "CNNSERVE_DEFAULTS", "CNNSERVE_IMAGE", "CNNSERVE_TOKEN")
# What Kubernetes sets for a Service whose name begins with "cnnserve", in every pod of its namespace.
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
# How argparse begins the text about arguments that it does not know.
_UNKNOWN = "unrecognized arguments: "
_LINK = re.compile(r"(tcp|udp|sctp)://")


class Parser(argparse.ArgumentParser):
    """argparse's parser, but a wrong command line prints one line, with the nearest flag."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Prints what is wrong in one line, and exits with status 2."""
        if message.startswith(_UNKNOWN):
            message = self._unknown(message.removeprefix(_UNKNOWN).split(" "))
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def _unknown(self, words: Sequence[str]) -> str:
        word = next((word for word in words if word.startswith("-")), words[0]).partition("=")[0]
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        flags = [flag for action in self._actions for flag in action.option_strings]
        return f"unknown flag {word}{guess(word, flags)}"


class Once(argparse.Action):
    """Keeps a value that may be given by several flags, or several times, but not with different values."""

    def __call__(self, _: object, namespace: argparse.Namespace, value: Any, flag: str | None = None) -> None:
        """Keeps `value`. Raises `argparse.ArgumentError` if another one was given before."""
        given = vars(namespace).setdefault("_given", {})
        if given.setdefault(self.dest, value) != value:
            raise argparse.ArgumentError(self, f"{flag} {value} differs from {given[self.dest]}; give one of them")
        setattr(namespace, self.dest, value)


def add_old_name(parser: argparse.ArgumentParser, flag: str, dest: str, **settings: Any) -> None:
    """Adds another flag for the setting `dest`, which help does not show."""
    suppressed = argparse.SUPPRESS
    parser.add_argument(flag, dest=dest, action=Once, default=suppressed, help=suppressed, **settings)


def guess(word: str, known: Collection[str], likeness: float = 0.7) -> str:
    """Returns "; did you mean …?" with the known word that is most like `word`, or "" if none is like it.

    `likeness`: how like it has to be, 0 to 1, as `difflib` counts.
    """
    # Imported only after a mistake.
    from difflib import get_close_matches  # noqa: PLC0415

    return "".join(f"; did you mean {near}?" for near in get_close_matches(word, known, 1, likeness))


def mistaken_variables(environment: Mapping[str, str], settings: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields the variables of `environment` that are probably mistakes, each with the variable that was meant.

    `settings`: the variables that exist. A variable that is not like any of them comes with "".
    """
    known = {*settings, *_OTHERS}
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or is_service_link(name, environment[name]):
            continue
        near = min(known, key=lambda other: distance(name, other))
        yield name, near if distance(name, near) <= _MISTAKES else ""


def is_service_link(name: str, value: str) -> bool:
    """Returns whether Kubernetes or Docker has set a variable to tell where a Service is."""
    return bool(_SERVICE.search(name) or (name.endswith("_PORT") and _LINK.match(value)))


def distance(one: str, other: str) -> int:
    """Returns how many letters must be replaced, removed or added to turn one word into the other."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, 1):
            diagonal, row[j] = row[j], min(diagonal + (letter != wanted), row[j] + 1, row[j - 1] + 1)
    return row[-1]
