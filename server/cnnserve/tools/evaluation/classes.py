"""Finds the class of a model that a name means: the name of a folder, or a label in a CSV file."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence


class ClassNames:
    """The classes of a model by their names. Without labels, or with `by_index`, a name is the number of a class.

    Names are equal if they look the same: macOS writes accents of file names in another form. If no label has a name, a
    label counts that differs only in case, or has spaces for underscores.
    """

    def __init__(self, labels: Sequence[str], class_count: int, *, by_index: bool = False) -> None:
        self._class_count = class_count
        self._by_index = by_index or not any(labels)
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._alike: dict[str, list[int]] = defaultdict(list)
        for index, label in enumerate(labels):
            if label:
                self._exact[_normal(label)].append(index)
                self._alike[_folded(label)].append(index)

    def find(self, name: str) -> int | None:
        """Returns the index of the class, or None if no class, or more than one, has this name."""
        if self._by_index:
            # Not isdecimal, which also accepts the digits of other scripts.
            number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else self._class_count
            return number if number < self._class_count else None
        found = self._exact.get(_normal(name)) or self._alike.get(_folded(name), [])
        return found[0] if len(found) == 1 else None

    @property
    def expected(self) -> str:
        """What a name has to be, for messages."""
        if not self._by_index:
            return "the label of exactly one class"
        return f"the number of a class, 0 to {self._class_count - 1}"


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("_", " ").casefold()).strip()
