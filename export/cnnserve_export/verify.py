"""Measures the parity of the ONNX file with PyTorch, through the server's own preprocessing and session.

PyTorch gets float32 rows that the server's `Preprocessor` normalised. The ONNX file gets rows of its own input form. So
the comparison covers the normalisation in the graph, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnserve.model_config.providers import CPU
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository.manifest import TOLERANCES, Agreement, Golden, Parity
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import contract as contracts
from cnnserve_export import convert, golden, proof
from cnnserve_export.contract import Contract
from cnnserve_export.errors import ExportError
from cnnserve_export.golden import GoldenImages
from cnnserve_export.outputs import Output

# Largest allowed difference of a probability.
TOLERANCE = TOLERANCES["fp32"]
# Number of rows that PyTorch computes at once.
_PART = 8

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Evidence:
    """What was measured: the parity, the golden images' probabilities and, for fp16 and int8, the agreement.

    `probabilities` (images, classes) has one row for each of `golden.images`. `doubt` says what the parity cannot show
    for this network; it is empty if there is nothing.
    """

    parity: Parity
    golden: Golden
    probabilities: NDArray[np.float32]
    agreement: Agreement | None = None
    doubt: str = ""


def _to_nobody(_done: int, _total: int) -> None:
    """Does nothing."""


def verify(
    model: Path,
    network: nn.Module,
    contract: Contract,
    *,
    golden_images: GoldenImages,
    max_batch_size: int,
    report: Report = _to_nobody,
) -> Evidence:
    """Returns the evidence that the ONNX file returns what `network` does, in batches of 1, 2, 3 and `max_batch_size`.

    The rows are the golden images and generated images, all different. `report` gets the number of computed rows and of
    all rows.
    Raises `ExportError` if a probability differs by more than 1e-4. The error names batch size, row, class and both
    values of the largest difference.
    """
    # First, because a file that ONNX Runtime cannot read is then reported before minutes of PyTorch.
    session = Session(model, SessionOptions(threads=cpu_budget()))
    count = max(max_batch_size, len(golden_images))
    batches = list(proof.batches(proof.batch_sizes(max_batch_size), count))
    total = count + sum(batch.stop - batch.start for batch in batches)
    reference = contracts.contract(contract.preprocessing, "float32", contract.class_count)
    host_rows = proof.rows(reference.preprocessing, reference.input, golden_images, count)
    expected = _pytorch(network, host_rows, lambda done: report(done, total), contract.returned)
    rows = proof.rows(contract.preprocessing, contract.input, golden_images, count)
    differences: dict[str, float] = {}
    done = count
    for batch in batches:
        size = batch.stop - batch.start
        difference = proof.largest_difference(
            session.run(rows[batch])[0],
            expected[batch],
            reference="PyTorch",
            tolerance=TOLERANCE,
            sum_to_one=contract.sums_to_one,
        )
        differences[str(size)] = max(difference, differences.get(str(size), 0.0))
        done += size
        report(done, total)
    return Evidence(
        Parity(differences, TOLERANCE, CPU),
        golden.record(golden_images, "fp32"),
        expected[: len(golden_images)],
        doubt=proof.doubt(expected, TOLERANCE),
    )


def _pytorch(
    network: nn.Module, rows: NDArray[np.generic], report: Callable[[int], None], returned: Output
) -> NDArray[np.float32]:
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), _PART):
            # A copy, because a network may change its input in place.
            answers = network(torch.from_numpy(rows[start : start + _PART].copy()))
            parts.append(convert.probabilities(answers, returned))
            report(min(start + _PART, len(rows)))
    values: NDArray[np.float32] = torch.cat(parts).numpy()
    if not np.isfinite(values).all():
        raise ExportError(
            "the PyTorch network does not return probabilities, but NaN or infinite values; check its weights"
        )
    return values
