"""scikit-learn's scanned handwritten digits, as the images a client would send.

1,797 digits of 8 x 8 pixels with values from 0 to 16, from UCI's "Optical Recognition of Handwritten Digits"
(E. Alpaydin, C. Kaynak, 1998). A fifth, 360 of them, is never trained on.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnserve_export.golden import encode_png, ink_to_pixels

HELD_OUT = 360
# Part of what "held out" means: another value would mix digits that published networks have seen into the test.
_SPLIT_SEED = 0


def training_digits() -> list[tuple[bytes, int]]:
    """The 1,437 digits to train on: each a PNG (8 x 8 grey) and its value."""
    return list(_split()[0])


def held_out_digits() -> list[tuple[bytes, int]]:
    """The 360 digits never trained on, about 36 of each value: each a PNG (8 x 8 grey) and its value."""
    return list(_split()[1])


def write_folder(digits: Sequence[tuple[bytes, int]], folder: Path) -> None:
    """Writes each digit as a PNG file, into a sub-folder that is named for its value."""
    for number, (png, value) in enumerate(digits):
        path = folder / str(value) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)


@functools.cache
def _split() -> tuple[tuple[tuple[bytes, int], ...], tuple[tuple[bytes, int], ...]]:
    data = load_digits()
    images = [encode_png(ink_to_pixels(image)) for image in data.images]
    labels = [int(label) for label in data.target]
    train, test = train_test_split(
        list(zip(images, labels, strict=True)), test_size=HELD_OUT, stratify=labels, random_state=_SPLIT_SEED
    )
    return tuple(train), tuple(test)
