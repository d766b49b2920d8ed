"""Reliability diagram and histogram as SVG. Every number in them is also in the table below each of them."""

from collections.abc import Iterator, Sequence

from cnnserve.tools.evaluation.metrics import Bin

from .markup import Markup, element, joined

_SIDE = 300
_LEFT, _TOP, _RIGHT, _BELOW = 48, 12, 12, 40
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def reliability(bins: Sequence[Bin]) -> Markup:
    """Returns the accuracy of each bin of the top probability, beside the line on which both are equal."""
    marks: list[Markup] = []
    for bin_ in filter(lambda one: one.images, bins):
        marks.append(_bar(bin_, 0.0, bin_.accuracy, "right"))
        low, high = sorted((bin_.accuracy, bin_.confidence))
        marks.append(_bar(bin_, low, high, "gap"))
    line = element("line", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1), class_="ideal")
    return _chart("Reliability diagram", "top probability", "accuracy", _TICKS, [*marks, line])


def histogram(bins: Sequence[Bin]) -> Markup:
    """Returns how many images have which top probability, right ones below wrong ones."""
    # So that each of the four lines above the axis is a whole number of images.
    most = -(-max(bin_.images for bin_ in bins) // 4) * 4
    marks: list[Markup] = []
    for bin_ in bins:
        marks.append(_bar(bin_, 0.0, bin_.correct / most, "right"))
        marks.append(_bar(bin_, bin_.correct / most, bin_.images / most, "wrong"))
    return _chart(
        "Histogram of the top probability", "top probability", "images", [tick * most for tick in _TICKS], marks
    )


def _chart(name: str, below: str, beside: str, values: Sequence[float], marks: Sequence[Markup]) -> Markup:
    width, height = _LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BELOW
    names = (
        element("text", below, x=_x(0.5), y=height - 4, class_="middle"),
        element("text", beside, x=12, y=_y(0.5), class_="middle", transform=f"rotate(-90 12 {_y(0.5)})"),
    )
    return element(
        "svg",
        element("title", name),
        *_axes(values),
        *marks,
        *names,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{name}. The table below has its numbers.",
    )


def _axes(values: Sequence[float]) -> Iterator[Markup]:
    for share, value in zip(_TICKS, values, strict=True):
        yield element("line", x1=_x(0), y1=_y(share), x2=_x(1), y2=_y(share), class_="grid")
        yield element(
            "text", f"{value:g}" if value <= 1 else f"{value:,.0f}", x=_LEFT - 6, y=_y(share) + 4, class_="end"
        )
        yield element("text", f"{share:g}", x=_x(share), y=_y(0) + 16, class_="middle")


def _bar(bin_: Bin, low: float, high: float, kind: str) -> Markup:
    if high <= low:
        return joined(())
    left, right = _x(bin_.low) + 0.5, _x(bin_.high) - 0.5
    return element(
        "rect", x=left, y=_y(high), width=round(right - left, 2), height=round(_y(low) - _y(high), 2), class_=kind
    )


def _x(share: float) -> float:
    return round(_LEFT + share * _SIDE, 2)


def _y(share: float) -> float:
    return round(_TOP + (1 - share) * _SIDE, 2)
