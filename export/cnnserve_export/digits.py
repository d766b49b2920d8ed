"""The scanned handwritten digits of scikit-learn, as images that a client would send.

There are 1,797 digits of 8 x 8 pixels with values from 0 to 16, from UCI's "Optical Recognition of Handwritten Digits"
(E. Alpaydin, C. Kaynak, 1998). 360 of them, a fifth, are held out: training never uses them.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from cnnserve_export.golden import encode_png, ink_to_pixels

HELD_OUT = 360
# Do not change the seed: another one would hold out digits on which published networks were trained.
_SPLIT_SEED = 0


def training_digits() -> list[tuple[bytes, int]]:
    """Returns the 1,437 digits for training, each as a PNG (8 x 8, grey) and its value."""
    return list(_split()[0])


def held_out_digits() -> list[tuple[bytes, int]]:
    """Returns the 360 held-out digits, about 36 of each value, each as a PNG (8 x 8, grey) and its value."""
    return list(_split()[1])


def write_folder(digits: Sequence[tuple[bytes, int]], folder: Path) -> None:
    """Writes each digit as a PNG file into a sub-folder of `folder` that has its value as name."""
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
