"""What every proof needs: the same pictures on both sides, and the largest difference between two sets of answers."""

import numpy as np
from numpy.typing import NDArray

from cnnserve.images.preprocessing import Preprocessor, RawImage
from cnnserve.model.classification import are_probabilities
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve_export import golden
from cnnserve_export.errors import ExportError


def rows(spec: Preprocessing, tensor: TensorInfo, golden_png: bytes, count: int) -> NDArray[np.generic]:
    """`count` rows as the server makes them: the golden image, then pictures of different sizes."""
    preprocessor = Preprocessor(spec, tensor)
    made = [preprocessor.encoded(golden_png)]
    for seed in range(1, count):
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        picture = golden.picture(seed, height, width)
        made.append(preprocessor.raw(RawImage(picture.tobytes(), height, width, 3)))
    return np.stack(made)


def batch_sizes(maximum: int) -> list[int]:
    """The batches that are compared: 1, 2 and 3, where exporters and runtimes go wrong, and the largest."""
    return sorted({min(size, maximum) for size in (1, 2, 3, maximum)})


def largest_difference(
    actual: NDArray[np.float32], expected: NDArray[np.float32], *, reference: str, tolerance: float
) -> float:
    """The largest absolute difference of any probability from what `reference` answered.

    Raises `ExportError` naming batch size, row, class and both values where it is more than `tolerance`.
    """
    size = len(expected)
    if actual.shape != expected.shape:
        raise ExportError(f"batch {size}: the ONNX file answers shape {actual.shape}, {reference} {expected.shape}")
    if not are_probabilities(actual):
        raise ExportError(f"batch {size}: the ONNX file's answers are no probabilities that sum to 1")
    difference = np.abs(actual - expected)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    largest = float(difference[row, column])
    if largest > tolerance:
        raise ExportError(
            f"the ONNX file does not answer what {reference} does: batch {size}, row {row}, class {column}: "
            f"{actual[row, column]:.7f}, {reference} {expected[row, column]:.7f} (allowed difference {tolerance})"
        )
    return largest


def doubt(answers: NDArray[np.float32], tolerance: float) -> str:
    """What a comparison of these probabilities (N, classes) within `tolerance` cannot see, for a person; else ""."""
    if np.all(answers.max(axis=1) == 1.0):
        return (
            "; WARNING: every answer is exactly 0 or 1, which hides differences of the logits: check the weights' scale"
        )
    if len(answers) > 1 and float(np.ptp(answers, axis=0).max()) <= tolerance:
        return (
            "; WARNING: all pictures get the same answer, so a wrongly read image would not be seen: check the weights"
        )
    return ""
