"""Draws the measured layouts as an SVG picture: rows per second over p99."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from cnnserve.model.layout_search import Measurement
from cnnserve.model_config.layout import Layout

_WIDTH, _HEIGHT, _EDGE = 720, 480, 60
_STYLE = "text { font: 12px sans-serif } .all { fill: #9aa } .best { fill: #c33 } path { fill: none; stroke: #36c }"


def svg(title: str, found: Mapping[Layout, Measurement], line: Sequence[Layout], best: Layout) -> str:
    """Returns the picture. `line` has the layouts of the frontier, by p99."""
    widest = max(each.p99_ms for each in found.values()) * 1.05
    highest = max(each.rate for each in found.values()) * 1.05

    def place(layout: Layout) -> tuple[float, float]:
        each = found[layout]
        x = _EDGE + each.p99_ms / widest * (_WIDTH - 2 * _EDGE)
        return round(x, 1), round(_HEIGHT - _EDGE - each.rate / highest * (_HEIGHT - 2 * _EDGE), 1)

    def dot(layout: Layout) -> str:
        x, y = place(layout)
        each = found[layout]
        text = escape(f"{layout}: {each.rate:,.1f} images/s, p99 {each.p99_ms:.1f} ms")
        kind, size = ("best", 6) if layout == best else ("all", 4)
        return f'<circle class="{kind}" cx="{x}" cy="{y}" r="{size}"><title>{text}</title></circle>'

    bottom, right = _HEIGHT - _EDGE, _WIDTH - _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"><style>{_STYLE}</style>',
        f'<text x="{_EDGE}" y="24">{escape(title)}</text>',
        f'<path style="stroke: #444" d="M{_EDGE} {_EDGE}V{bottom}H{right}"/>',
        *(_mark(value, highest) for value in _steps(highest)),
        *(
            f'<text text-anchor="middle" x="{_EDGE + value / widest * (right - _EDGE):.1f}" y="{bottom + 18}">'
            f"{value:g}</text>"
            for value in _steps(widest)
        ),
        f'<text text-anchor="middle" x="{_WIDTH / 2}" y="{_HEIGHT - 16}">p99 in ms</text>',
        f'<text x="{_EDGE}" y="{_EDGE - 12}">images/s</text>',
        f'<path d="M{" L".join("{} {}".format(*place(layout)) for layout in line)}"/>',
        *map(dot, found),
        f'<text x="{place(best)[0] + 10}" y="{place(best)[1] - 8}">{escape(str(best))}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _mark(value: float, highest: float) -> str:
    y = _HEIGHT - _EDGE - value / highest * (_HEIGHT - 2 * _EDGE)
    return f'<text text-anchor="end" x="{_EDGE - 6}" y="{y + 4:.1f}">{value:g}</text>'


def _steps(highest: float) -> list[float]:
    """Returns about five round numbers up to `highest`."""
    rough = highest / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [step * count for count in range(int(highest / step) + 1)]
