"""The confusion matrix as a table with coloured cells; of many classes, those with the most mistakes."""

from collections import Counter
from collections.abc import Sequence

from cnnserve.tools.evaluation.findings import ModelFindings

from .markup import Markup, element, scrolling, table

_CLASSES = 40
_PAIRS = 20
_LEVELS = 9


def confusion(model: ModelFindings) -> list[Markup]:
    """Returns the matrix, and the pairs of classes that are most often confused."""
    shown, note = [one.index for one in model.classes], ""
    if len(shown) > _CLASSES:
        mistakes: Counter[int] = Counter()
        for one in model.confusions:
            if one.truth != one.predicted:
                mistakes[one.truth] += one.images
                mistakes[one.predicted] += one.images
        kept = {index for index, _ in mistakes.most_common(_CLASSES)}
        note = f" ({_CLASSES} of {len(shown)} classes, those with the most mistakes)"
        shown = [index for index in shown if index in kept]
    return [
        _matrix(model, shown, f"Confusion matrix{note}: rows are the classes, columns what the model says"),
        *_pairs(model),
    ]


def _matrix(model: ModelFindings, shown: Sequence[int], caption: str) -> Markup:
    label = model.subject.label
    cells = {(one.truth, one.predicted): one.images for one in model.confusions}
    images = {one.index: one.images for one in model.classes}
    head = element("tr", element("td"), *(element("th", label(index), scope="col") for index in shown))
    rows = [
        element(
            "tr",
            element("th", label(row), scope="row"),
            *(_cell(cells.get((row, column), 0), images[row], right=row == column) for column in shown),
        )
        for row in shown
    ]
    whole = element(
        "table", element("caption", caption), element("thead", head), element("tbody", *rows), class_="matrix"
    )
    return scrolling("Confusion matrix", whole)


def _cell(count: int, images: int, *, right: bool) -> Markup:
    # Rounded up, so that a single mistake among thousands can still be seen.
    level = -(-count * _LEVELS // images) if images else 0
    return element("td", str(count) if count else "", class_=f"{'hit' if right else 'miss'} level{level}")


def _pairs(model: ModelFindings) -> list[Markup]:
    label = model.subject.label
    wrong = [one for one in model.confusions if one.truth != one.predicted]
    if not wrong:
        return []
    rows = [
        (label(one.truth), label(one.predicted), f"{one.images:,}")
        for one in sorted(wrong, key=lambda one: -one.images)[:_PAIRS]
    ]
    return [table("Most frequent mistakes", ("Class", "Taken for", "Images"), rows, numbers=(2,))]
