"""The golden probabilities: float32, little-endian, one row of all classes for each golden image.

numpy is imported only for values, because parsers of the command line import this package for its names.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.folders import MANIFEST_FILE
from cnnserve.repository.manifest.fields import InvalidField
from cnnserve.repository.manifest.schema import Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The exporter's name for it.
PROBABILITIES_FILE = "golden.bin"
BYTES_PER_VALUE = 4
_FLOAT32 = "<f4"
# float32 rows of a thousand classes sum to 1 within 1e-6.
_SUM_TOLERANCE = 1e-3


def golden_bytes(probabilities: "NDArray[np.floating] | Sequence[float]") -> bytes:
    """Returns the content of the file of golden probabilities: of an array (images, classes), or of one image's values.

    Values that float32 cannot hold become infinite.
    """
    import numpy as np  # noqa: PLC0415

    with np.errstate(over="ignore"):
        return np.asarray(probabilities).astype(_FLOAT32).tobytes()


def golden_probabilities(manifest: Manifest, read: Callable[[str], bytes]) -> "NDArray[np.float32]":
    """Returns the golden probabilities (images, classes), one row for each of `golden.images`.

    `read` returns the content of a file of the version by its name. Pass the bytes whose digest was compared. It is not
    called for a manifest of schema 1. Raises `ModelLoadFailed` if the values cannot be an output of the model.
    """
    name = manifest.golden.probabilities
    try:
        return values(manifest, manifest.golden.inline if name is None else read(name))
    except InvalidField as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE}: {error}") from error


def values(manifest: Manifest, data: bytes) -> "NDArray[np.float32]":
    """Returns the golden probabilities (images, classes) in `data`. Raises `InvalidField` if they are impossible."""
    import numpy as np  # noqa: PLC0415

    images, classes = len(manifest.golden.images), manifest.class_count
    name = manifest.golden.probabilities or "golden.probabilities"
    if len(data) != images * classes * BYTES_PER_VALUE:
        raise InvalidField(
            f"{name} has {len(data) / BYTES_PER_VALUE:g} values, expected {classes} (class_count) for each of "
            f"{images} golden image(s)"
        )
    rows: NDArray[np.float32] = np.frombuffer(data, _FLOAT32).reshape(images, classes)
    if not np.isfinite(rows).all():
        raise InvalidField(f"{name} holds values that are not finite")
    if manifest.activation != "none" and (rows.min() < 0 or rows.max() > 1 + _SUM_TOLERANCE):
        raise InvalidField(f"{name} holds values from {rows.min():g} to {rows.max():g}, expected probabilities")
    sums = rows.sum(axis=1, dtype=np.float64)
    if manifest.activation == "softmax" and (np.abs(sums - 1) > _SUM_TOLERANCE).any():
        worst = sums[np.abs(sums - 1).argmax()]
        raise InvalidField(f"{name}: the probabilities of an image sum to {worst:g}, expected 1")
    if manifest.activation == "none" and classes > 1 and rows.min() >= 0 and (np.abs(sums - 1) <= _SUM_TOLERANCE).all():
        raise InvalidField(f"{name} holds probabilities, which sum to 1, but activation is none; expected logits")
    return rows
