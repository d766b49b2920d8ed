"""The golden images of one export: the user's file or folder, under the names that they have in the version folder."""

from pathlib import Path

from cnnserve.repository.manifest import MAX_GOLDEN_IMAGES
from cnnserve_export import golden, images
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages

# Bytes of one image as it is published. All of them are decoded before a version is READY.
_LARGEST = 1 << 20


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
