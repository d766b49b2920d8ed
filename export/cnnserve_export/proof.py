"""What comparisons share: the same images on both sides, the batch sizes, and the largest difference."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnserve.config.settings import LOAD_TIMEOUT_S
from cnnserve.images.preprocessing import Preprocessor, RawImage
from cnnserve.model import proving
from cnnserve.model.classification import are_probabilities
from cnnserve.model.selftest import SelfTest
from cnnserve.model_config import execution as executions
from cnnserve.model_config.settings import resolve
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository import normalisation
from cnnserve.repository.manifest import Manifest, Preprocessing, TensorInfo
from cnnserve.runtime import workers
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import golden
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages


def rows(spec: Preprocessing, tensor: TensorInfo, images: GoldenImages, count: int) -> NDArray[np.generic]:
    """Returns rows as the server makes them: of all golden images, then of generated images of several sizes.

    There are `count` rows, or as many as golden images if these are more.
    """
    preprocessor = Preprocessor(spec, tensor)
    made = [preprocessor.encoded(image) for image in images.values()]
    for seed in range(len(made), count):
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        picture = golden.picture(seed, height, width)
        made.append(preprocessor.raw(RawImage(picture.tobytes(), height, width, 3)))
    return np.stack(made)


def batch_sizes(maximum: int) -> list[int]:
    """Returns the batch sizes to compare: the largest, and 1, 2 and 3, with which exporters and runtimes fail most."""
    return sorted({min(size, maximum) for size in (1, 2, 3, maximum)})


def batches(sizes: Sequence[int], count: int) -> Iterator[slice]:
    """Yields the batches in which `count` rows are compared: one of each size from the first row on.

    Further batches of the largest size, which is at most `count`, contain the rows behind it.
    """
    for size in sizes:
        yield slice(0, size)
    largest = max(sizes)
    for end in range(2 * largest, count + largest, largest):
        yield slice(min(end, count) - largest, min(end, count))


def largest_difference(
    actual: NDArray[np.float32],
    expected: NDArray[np.float32],
    *,
    reference: str,
    tolerance: float,
    sum_to_one: bool = True,
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
    if sum_to_one and not are_probabilities(actual):
        raise ExportError(f"batch of {size}: the ONNX file does not return probabilities that sum to 1")
    if not sum_to_one and not np.all((actual >= 0) & (actual <= 1)):
        raise ExportError(f"batch of {size}: the ONNX file returns values that are not within 0 and 1")
    difference = np.abs(actual - expected)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    largest = float(difference[row, column])
    if largest > tolerance:
        raise ExportError(
            f"the ONNX file differs from {reference} in a batch of {size}, row {row}, class {column}: it returns "
            f"{actual[row, column]:.7f}, {reference} returns {expected[row, column]:.7f} (tolerance {tolerance})"
        )
    return largest


def served(folder: Path, manifest: Manifest) -> str:
    """Runs the server's self-test, as at a load, on the version in a folder, so that what is published is served.

    Returns a warning if the version has no answer to an image of one colour, as networks do that standardise each
    image, else "". Raises `ModelLoadFailed` if the version fails the self-test.
    """
    self_test(folder, manifest, extra_s=proving.EXTRA_S)
    side = RawImage(bytes(3 * 64 * 64), 64, 64, 3)
    row = Preprocessor(manifest.preprocessing, manifest.input).raw(side)
    session = Session(folder / manifest.onnx.file, SessionOptions(threads=cpu_budget()))
    fixed = session.inputs[0].shape[0]
    answers = session.run(np.repeat(row[np.newaxis], max(1, fixed), axis=0))[0]
    if np.isfinite(answers).all():
        return ""
    return (
        "; WARNING: an image of one colour gets no answer, because the network then returns values that are not finite"
    )


def self_test(folder: Path, manifest: Manifest, *, extra_s: float = math.inf) -> SelfTest:
    """Runs the self-test of the server on the version in a folder. Raises `ModelLoadFailed` if it fails.

    `extra_s` is the time for runs that the server also makes after READY.
    """
    cpus = cpu_budget()
    model = folder / manifest.onnx.file
    # Engines are for GPUs only, so no folder for them is made.
    execution, sessions = workers.open_sessions(model, executions.read(None, "cpu"), cpus, folder, lambda _: None)
    settings = resolve(manifest.model, None, manifest, sessions[0].inputs, sessions[0].outputs)
    findings = proving.examine(
        workers.make_workers(manifest.model, execution, sessions, settings),
        settings,
        manifest=manifest,
        preprocessor=Preprocessor(manifest.preprocessing, manifest.input),
        read=lambda name: (folder / name).read_bytes(),
        warmups=(),
        run_limit_s=LOAD_TIMEOUT_S,
        extra_s=extra_s,
    )
    assert findings.self_test is not None
    return findings.self_test


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


def normalisation_doubt(spec: Preprocessing, tensor: TensorInfo, file: Path) -> str:
    """Returns how the graph in `file` contradicts mean and std, for a person; else ""."""
    found = normalisation.contradiction(spec, tensor, file)
    return f"; WARNING: {found}: check --mean and --std" if found else ""
