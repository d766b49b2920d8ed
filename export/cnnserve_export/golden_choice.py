"""The golden images of one export, under the names that they have in the version folder.

They are the user's file or folder, or a built-in set: a generated image and some of `golden_images/`.
"""

from collections.abc import Sequence
from pathlib import Path

from cnnserve.repository.manifest import MAX_GOLDEN_IMAGES
from cnnserve_export import golden, images
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages

# Bytes of one image as it is published. All of them are decoded before a version is READY.
_LARGEST = 1 << 20
_BUILT_IN = Path(__file__).parent / "golden_images"
# Measured with bench/golden_set.py: the first four, of the digits the first six, find nearly all mutants that any small
# image finds. The others are of further kinds: another resize mode, for example, may show only in an upright image.
# README.md beside the images says where they come from.
_PHOTOGRAPHS = ("turned.jpg", "tissue.jpg", "gravel.jpg", "launch.jpg", "large.jpg", "grey.png", "alpha.png")
_DIGITS = (
    *("one.png", "zero.png", "grey.png", "six.png", "three.png", "four.png"),
    *("turned.jpg", "launch.jpg", "alpha.png"),
)


def photographs() -> GoldenImages:
    """Returns the built-in set for networks that know photographs, beginning with the images that show most."""
    return golden.single(golden.photograph()) | _built_in(_PHOTOGRAPHS)


def digits() -> GoldenImages:
    """Returns the built-in set for networks that know scanned digits, beginning with the images that show most."""
    return golden.single(golden.digit()) | _built_in(_DIGITS)


def _built_in(names: Sequence[str]) -> dict[str, bytes]:
    return {f"golden-{name}": (_BUILT_IN / name).read_bytes() for name in names}


def from_path(path: Path) -> GoldenImages:
    """Returns the image of a file, or the images below a folder in the order of their paths.

    Raises `ExportError` if an image cannot be read, or if a folder has none, more than 32 or a large one.
    """
    if not path.is_dir():
        return golden.single(golden.from_file(path))
    found = images.files_below(path)
    if len(found) > MAX_GOLDEN_IMAGES:
        raise ExportError(
            f"--golden: {path} holds {len(found)} images, at most {MAX_GOLDEN_IMAGES} are used; remove some"
        )
    chosen = [golden.from_file(file) for file in found.values()]
    for file, data in zip(found.values(), chosen, strict=True):
        if len(data) > _LARGEST:
            raise ExportError(
                f"--golden: {file} has {len(data) / 1e6:.1f} MB as PNG, at most {_LARGEST / 1e6:.1f} MB are allowed in "
                "a folder, because the server decodes all golden images before it serves; make the image smaller"
            )
    return golden.numbered(chosen)
