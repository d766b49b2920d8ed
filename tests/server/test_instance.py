"""One run over the rows of several requests."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnserve.errors import InferenceFailed
from cnnserve.instance import run_rows
from fakes import FakeSession


class Flat:
    """A model that loses the batch dimension."""

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        return [batch.sum(keepdims=False).reshape(1)]


def test_a_fixed_batch_is_padded_and_cut() -> None:
    session = FakeSession()
    outputs = run_rows(session, [np.ones((1, 2)), 2 * np.ones((2, 2))], fixed_batch=8)
    assert session.sizes == [8]
    assert outputs[0].ravel().tolist() == [2, 4, 4]


def test_an_output_without_the_batch_dimension_is_an_error() -> None:
    with pytest.raises(InferenceFailed, match=r"output 0 has shape \(1,\) for a batch of 3"):
        run_rows(Flat(), [np.ones((3, 2))])
