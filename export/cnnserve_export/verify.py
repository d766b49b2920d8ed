"""Proof that the ONNX file answers what PyTorch answers, through the server's own preprocessing and session.

The PyTorch side gets float32 rows that the server's `Preprocessor` normalised on the host, the served side the rows of
its own input form: so the normalisation inside the graph is proved as well, not only the network behind it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnserve.classification import are_probabilities
from cnnserve.cpu import cpu_budget
from cnnserve.manifest import Golden, Parity
from cnnserve.preprocessing import Preprocessor, RawImage
from cnnserve.providers import CPU
from cnnserve.session import Session, SessionOptions
from cnnserve_export import contract as contracts
from cnnserve_export import golden
from cnnserve_export.contract import Contract
from cnnserve_export.errors import ExportError

# Largest difference allowed for any probability. float32 sums in another order differ by about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Evidence:
    """What was measured: the parity record, and PyTorch's answer to the golden image."""

    parity: Parity
    golden: Golden


def verify(model: Path, network: nn.Module, contract: Contract, *, golden_png: bytes, max_batch_size: int) -> Evidence:
    """Compares the ONNX file with `network` at batch 1, 3 and `max_batch_size`.

    The rows are the golden image and varied pictures, all different. Raises `ExportError` naming batch size, row, class
    and both values where they differ most.
    """
    reference = contracts.contract(contract.preprocessing, "float32", contract.class_count)
    expected = _pytorch(network, _rows(reference, golden_png, max_batch_size))
    rows = _rows(contract, golden_png, max_batch_size)
    session = Session(model, SessionOptions(threads=cpu_budget()))
    sizes = sorted({1, min(3, max_batch_size), max_batch_size})
    differences = {str(size): _compare(session.run(rows[:size])[0], expected[:size]) for size in sizes}
    return Evidence(
        Parity(differences, TOLERANCE, CPU),
        Golden(golden.GOLDEN_FILE, tuple(map(float, expected[0])), TOLERANCE),
    )


def _rows(contract: Contract, golden_png: bytes, count: int) -> NDArray[np.generic]:
    """`count` rows as the server makes them: the golden image, then pictures of different sizes."""
    preprocessor = Preprocessor(contract.preprocessing, contract.input)
    rows = [preprocessor.encoded(golden_png)]
    for seed in range(1, count):
        height, width = 200 + 37 * seed % 200, 200 + 53 * seed % 200
        picture = golden.picture(seed, height, width)
        rows.append(preprocessor.raw(RawImage(picture.tobytes(), height, width, 3)))
    return np.stack(rows)


def _pytorch(network: nn.Module, rows: NDArray[np.generic]) -> NDArray[np.float32]:
    with torch.inference_mode():
        probabilities = torch.softmax(network.eval()(torch.from_numpy(rows)), dim=1)
    values: NDArray[np.float32] = probabilities.numpy()
    if not are_probabilities(values):
        raise ExportError("the PyTorch network's own answers are no probabilities (NaN or infinite); check its weights")
    return values


def _compare(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest absolute difference."""
    size = len(expected)
    if actual.shape != expected.shape:
        raise ExportError(f"batch {size}: the ONNX file answers shape {actual.shape}, PyTorch {expected.shape}")
    if not are_probabilities(actual):
        raise ExportError(f"batch {size}: the ONNX file's answers are no probabilities that sum to 1")
    difference = np.abs(actual - expected)
    row, column = np.unravel_index(difference.argmax(), difference.shape)
    largest = float(difference[row, column])
    if largest > TOLERANCE:
        raise ExportError(
            f"the ONNX file does not answer what PyTorch does: batch {size}, row {row}, class {column}: "
            f"{actual[row, column]:.7f}, PyTorch {expected[row, column]:.7f} (allowed difference {TOLERANCE})"
        )
    return largest
