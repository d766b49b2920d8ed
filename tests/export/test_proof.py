import numpy as np
import pytest

from cnnserve_export import golden, proof
from cnnserve_export.contract import image_input
from cnnserve_export.errors import ExportError
from cnnserve_export.preparation import Given, of_network

SPEC = of_network(Given(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, resize=(10,)))


def test_the_rows_are_all_different_and_begin_with_the_golden_image() -> None:
    png = golden.encode_png(golden.picture(7, 30, 40))
    spec, tensor = image_input(SPEC, "uint8")
    rows = proof.rows(spec, tensor, png, 32)
    assert (rows.shape, rows.dtype) == ((32, 8, 8, 3), np.uint8)
    assert len({row.tobytes() for row in rows}) == 32
    np.testing.assert_array_equal(proof.rows(spec, tensor, png, 1)[0], rows[0])


def test_the_largest_difference_is_named_where_it_is_too_large() -> None:
    expected = np.array([[0.25, 0.75], [0.5, 0.5]], np.float32)
    actual = np.array([[0.25, 0.75], [0.51, 0.49]], np.float32)
    assert proof.largest_difference(actual, expected, reference="it", tolerance=0.1) == pytest.approx(0.01)
    with pytest.raises(
        ExportError, match=r"from it in a batch of 2, row 1, class \d: it returns 0\.\d+, it returns 0\.50+ \(tol"
    ):
        proof.largest_difference(actual, expected, reference="it", tolerance=0.001)
    with pytest.raises(ExportError, match="returns shape"):
        proof.largest_difference(actual[:1], expected, reference="it", tolerance=1)
