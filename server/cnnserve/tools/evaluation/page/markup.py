"""Builds HTML. Whatever is not `Markup` is text and is escaped, so that names of people's files cannot become HTML."""

import html
from collections.abc import Iterable, Sequence

from cnnserve_client.commands.report import printable

_VOID = frozenset({"meta", "img", "rect", "line", "circle", "path"})


class Markup(str):
    """HTML that `element` has built."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """Returns an element. Children that are no `Markup`, and all values of attributes, are escaped.

    In names of attributes, "_" stands for "-"; a "_" at the end is removed, as in `class_`.
    """
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>" if name in ("meta", "img") else f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>\n")


def joined(children: Iterable[str]) -> Markup:
    """Returns the children one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """Returns a table whose first column names the rows. `numbers`: the columns that are aligned right."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    return scrolling(
        caption,
        element(
            "table",
            element("caption", caption),
            element("thead", head),
            element("tbody", *(_row(row, numbers) for row in rows)),
        ),
    )


def scrolling(name: str, content: Markup) -> Markup:
    """Returns a part that scrolls by itself if it is wider than the page, also with the keyboard.

    It is no region, because two models have parts of the same name.
    """
    return element("div", content, class_="scroll", tabindex="0", role="group", aria_label=name)


def _row(row: Sequence[str], numbers: Sequence[int]) -> Markup:
    first, *others = row
    cells = [
        element("td", cell, class_="number" if column in numbers else "text") for column, cell in enumerate(others, 1)
    ]
    return element("tr", element("th", first, scope="row"), *cells)


def _escaped(value: str | float) -> str:
    return html.escape(printable(str(value)))
