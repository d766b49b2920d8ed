import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnserve_export import golden
from cnnserve_export.digits import held_out_digits, training_digits
from cnnserve_export.errors import ExportError


def decoded(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image)


def test_the_standard_picture_is_the_same_every_time() -> None:
    image = decoded(golden.photograph())
    assert image.shape == (375, 500, 3)
    np.testing.assert_array_equal(image, golden.picture(0, 375, 500))
    assert image.std() > 30


def test_seeds_make_different_pictures() -> None:
    assert not np.array_equal(golden.picture(1, 20, 30), golden.picture(2, 20, 30))


def test_the_golden_digit_is_a_held_out_three() -> None:
    matches = [label for png, label in held_out_digits() if np.array_equal(decoded(png), decoded(golden.digit()))]
    assert matches == [3]


def test_digits_are_the_whole_grey_scale() -> None:
    digits = [decoded(png) for png, _ in training_digits()]
    assert {digit.shape for digit in digits} == {(8, 8)}
    assert (np.min(digits), np.max(digits)) == (0, 255)


def test_a_fifth_is_held_out_evenly() -> None:
    training, held_out = training_digits(), held_out_digits()
    assert (len(training), len(held_out)) == (1437, 360)
    counts = np.bincount([label for _, label in held_out])
    assert counts.min() >= 35
    assert counts.max() <= 37
    assert held_out_digits() == held_out


def test_a_png_is_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(golden.digit())
    assert golden.from_file(path) == golden.digit()


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(golden.picture(1, 20, 30)).save(tmp_path / "mine.jpg", exif=exif)
    assert decoded(golden.from_file(tmp_path / "mine.jpg")).shape == (30, 20, 3)


@pytest.mark.parametrize("data", [b"", b"text", golden.photograph()[:500]])
def test_other_files_are_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(data)
    with pytest.raises(ExportError, match=r"golden image .*mine\.png cannot be read"):
        golden.from_file(tmp_path / "mine.png")
