"""Thumbnails of images, as a part of the page."""

import base64
from collections.abc import Callable, Sequence

from cnnserve.errors import InvalidInput
from cnnserve.images.thumbnail import thumbnail
from cnnserve.tools.evaluation.findings import Mistake
from cnnserve_client.images import read_file

from .markup import Markup, element

_SIDE = 112


def mistakes(mistakes_: Sequence[Mistake], label: Callable[[int], str]) -> Markup:
    """Returns the images with their classes, what the model takes them for, and how sure it is."""
    figures = [
        _figure(
            one.path,
            element("p", element("b", label(one.truth)), " taken for ", element("b", label(one.predicted))),
            element("p", f"{one.probability:.2%}"),
        )
        for one in mistakes_
    ]
    return element("ol", *(element("li", figure) for figure in figures), class_="pictures")


def _figure(path: str, *about: Markup) -> Markup:
    return element("figure", _picture(path), element("figcaption", *about, element("p", path, class_="path")))


def _picture(path: str) -> Markup:
    try:
        found = thumbnail(read_file(path), _SIDE)
    except (OSError, InvalidInput) as error:
        # The server could read it, so the file has changed since, or only its other decoder can read it.
        return element("p", f"no picture: {error}", class_="none")
    return element(
        "img",
        src=f"data:{found.media_type};base64,{base64.b64encode(found.data).decode()}",
        alt="",
        width=found.width,
        height=found.height,
        class_="exact" if max(found.width, found.height) < _SIDE else "small",
    )
