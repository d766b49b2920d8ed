import numpy as np
import pytest

from cnnserve_export import golden, proof
from cnnserve_export.contract import image_input
from cnnserve_export.errors import ExportError
from cnnserve_export.preparation import Given, of_network

SPEC = of_network(Given(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, resize=(10,)))


def test_the_rows_are_all_different_and_begin_with_the_golden_image() -> None:
    images = golden.numbered([golden.encode_png(golden.picture(seed, 30, 40)) for seed in (7, 8)])
    spec, tensor = image_input(SPEC, "uint8")
    rows = proof.rows(spec, tensor, images, 32)
    assert (rows.shape, rows.dtype) == ((32, 8, 8, 3), np.uint8)
    assert len({row.tobytes() for row in rows}) == 32
    np.testing.assert_array_equal(proof.rows(spec, tensor, images, 1), rows[:2])


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([1, 2, 3, 8], 8, [(0, 1), (0, 2), (0, 3), (0, 8)]),
        ([1], 3, [(0, 1), (1, 2), (2, 3)]),
        ([1, 2, 3], 5, [(0, 1), (0, 2), (0, 3), (2, 5)]),
        ([4], 12, [(0, 4), (4, 8), (8, 12)]),
        ([4], 9, [(0, 4), (4, 8), (5, 9)]),
    ],
)
def test_every_row_is_in_a_batch(sizes: list[int], count: int, expected: list[tuple[int, int]]) -> None:
    assert [(batch.start, batch.stop) for batch in proof.batches(sizes, count)] == expected


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
