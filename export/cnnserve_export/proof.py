"""What comparisons share: the same images on both sides, the batch sizes, and the largest difference."""

import numpy as np
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor, RawImage
from cnnserve.model.classification import are_probabilities
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve_export import golden
from cnnserve_export.errors import ExportError


def rows(spec: Preprocessing, tensor: TensorInfo, golden_png: bytes, count: int) -> NDArray[np.generic]:
    """Returns `count` rows as the server makes them: of the golden image and of generated images of several sizes."""
    preprocessor = Preprocessor(spec, tensor)
    made = [preprocessor.encoded(golden_png)]
    for seed in range(1, count):
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        picture = golden.picture(seed, height, width)
        made.append(preprocessor.raw(RawImage(picture.tobytes(), height, width, 3)))
    return np.stack(made)


def batch_sizes(maximum: int) -> list[int]:
    """Returns the batch sizes to compare: the largest, and 1, 2 and 3, with which exporters and runtimes fail most."""
    return sorted({min(size, maximum) for size in (1, 2, 3, maximum)})


def largest_difference(
    actual: NDArray[np.float32], expected: NDArray[np.float32], *, reference: str, tolerance: float
) -> float:
    """Returns the largest absolute difference of a probability between `actual` and `expected`, both (N, classes).

    `reference` names what returned `expected`, for errors. Raises `ExportError` if the shapes differ, if `actual` are
    not probabilities, and if the difference is larger than `tolerance`; that error names batch size, row, class and
    both values.
    """
    size = len(expected)
    if actual.shape != expected.shape:
        raise ExportError(
            f"batch of {size}: the ONNX file returns shape {actual.shape}, {reference} returns {expected.shape}"
        )
    if not are_probabilities(actual):
        raise ExportError(f"batch of {size}: the ONNX file does not return probabilities that sum to 1")
    difference = np.abs(actual - expected)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    largest = float(difference[row, column])
    if largest > tolerance:
        raise ExportError(
            f"the ONNX file differs from {reference} in a batch of {size}, row {row}, class {column}: it returns "
            f"{actual[row, column]:.7f}, {reference} returns {expected[row, column]:.7f} (tolerance {tolerance})"
        )
    return largest


def doubt(answers: NDArray[np.float32], tolerance: float) -> str:
    """Returns a warning if a comparison of these probabilities (N, classes) cannot show every mistake, else ""."""
    if np.all(answers.max(axis=1) == 1.0):
        return (
            "; WARNING: every probability is exactly 0 or 1, which hides differences of the logits; check the scale of "
            "the weights"
        )
    if len(answers) > 1 and float(np.ptp(answers, axis=0).max()) <= tolerance:
        return "; WARNING: all images have the same probabilities, which hides wrong preprocessing; check the weights"
    return ""
