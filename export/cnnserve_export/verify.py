"""Proof that the ONNX file answers what PyTorch answers, through the server's own preprocessing and session.

The PyTorch side gets float32 rows that the server's `Preprocessor` normalised on the host, the served side the rows of
its own input form: so the normalisation inside the graph is proved as well, not only the network behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cnnserve.model.classification import are_probabilities
from cnnserve.model_config.providers import CPU
from cnnserve.process.cpu import cpu_budget
from cnnserve.repository.manifest import Agreement, Golden, Parity
from cnnserve.runtime.session import Session, SessionOptions
from cnnserve_export import contract as contracts
from cnnserve_export import golden, proof
from cnnserve_export.contract import Contract
from cnnserve_export.errors import ExportError

# Largest difference allowed for any probability. float32 sums in another order differ by about 1e-6.
TOLERANCE = 1e-4
# Rows that PyTorch computes at once.
_PART = 8

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Evidence:
    """What was measured: the parity record, the golden image's probabilities, and below fp32 the agreement with it.

    `doubt` says what the parity cannot show of this network; empty where it shows all.
    """

    parity: Parity
    golden: Golden
    agreement: Agreement | None = None
    doubt: str = ""


def _to_nobody(_done: int, _total: int) -> None:
    """Nobody watches."""


def verify(
    model: Path,
    network: nn.Module,
    contract: Contract,
    *,
    golden_png: bytes,
    max_batch_size: int,
    report: Report = _to_nobody,
) -> Evidence:
    """Compares the ONNX file with `network` at batch 1, 2, 3 and `max_batch_size`.

    The rows are the golden image and varied pictures, all different. `report` hears how many rows of how many were
    computed. Raises `ExportError` naming batch size, row, class and both values where they differ most.
    """
    # Cheap, and a file that the runtime cannot read is told before minutes of PyTorch.
    session = Session(model, SessionOptions(threads=cpu_budget()))
    sizes = proof.batch_sizes(max_batch_size)
    total = max_batch_size + sum(sizes)
    reference = contracts.contract(contract.preprocessing, "float32", contract.class_count)
    host_rows = proof.rows(reference.preprocessing, reference.input, golden_png, max_batch_size)
    expected = _pytorch(network, host_rows, lambda done: report(done, total), ends_in_softmax=contract.ends_in_softmax)
    rows = proof.rows(contract.preprocessing, contract.input, golden_png, max_batch_size)
    differences = {}
    done = max_batch_size
    for size in sizes:
        differences[str(size)] = proof.largest_difference(
            session.run(rows[:size])[0], expected[:size], reference="PyTorch", tolerance=TOLERANCE
        )
        done += size
        report(done, total)
    return Evidence(
        Parity(differences, TOLERANCE, CPU),
        Golden(golden.GOLDEN_FILE, tuple(map(float, expected[0])), TOLERANCE),
        doubt=proof.doubt(expected, TOLERANCE),
    )


def _pytorch(
    network: nn.Module, rows: NDArray[np.generic], report: Callable[[int], None], *, ends_in_softmax: bool
) -> NDArray[np.float32]:
    network.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), _PART):
            # A copy: a network may change its input in place.
            answers = network(torch.from_numpy(rows[start : start + _PART].copy()))
            parts.append(answers if ends_in_softmax else torch.softmax(answers, dim=1))
            report(min(start + _PART, len(rows)))
    values: NDArray[np.float32] = torch.cat(parts).numpy()
    if not are_probabilities(values):
        raise ExportError("the PyTorch network's own answers are no probabilities (NaN or infinite); check its weights")
    return values
