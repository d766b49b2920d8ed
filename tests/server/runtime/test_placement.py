"""Which nodes may run on another execution provider than the wanted one."""

import pytest

from cnnserve.model_config.providers import CPU, CUDA, TENSORRT, Provider
from cnnserve.runtime.placement import Node, misplaced, nodes_per_provider

CONVOLUTIONS = [Node(CUDA, "Conv")] * 3


def test_nodes_are_counted() -> None:
    assert nodes_per_provider([*CONVOLUTIONS, Node(CPU, "Gather")]) == {CUDA: 3, CPU: 1}


@pytest.mark.parametrize("nodes", [CONVOLUTIONS, [*CONVOLUTIONS, Node(CUDA, "Shape"), Node(CPU, "Gather")], []])
def test_the_arithmetic_of_shapes_may_be_on_the_cpu(nodes: list[Node]) -> None:
    assert misplaced(nodes, Provider("cuda")) is None


def test_a_cast_of_the_image_is_no_arithmetic_of_shapes() -> None:
    told = misplaced([*CONVOLUTIONS, Node(CPU, "Cast")], Provider("cuda"))
    assert told == f"1 of 4 nodes run on {CPU} instead of {CUDA} (1 Cast)"


def test_the_most_frequent_operators_are_named() -> None:
    nodes = [Node(CPU, name) for name in "ABCDEF"] + [Node(CPU, "Conv")] * 2 + [Node(CUDA, "Shape")]
    told = misplaced(nodes, Provider("cuda"))
    assert told is not None
    assert told.startswith(f"8 of 9 nodes run on {CPU}")
    assert told.endswith("(2 Conv, 1 A, 1 B, 1 C, 1 D, ...)")


def test_tensorrt_may_leave_nodes_to_cuda_but_not_all() -> None:
    assert misplaced([*CONVOLUTIONS, Node(TENSORRT, "Gemm")], Provider("tensorrt")) is None
    assert misplaced(CONVOLUTIONS, Provider("tensorrt")) == f"none of 3 nodes runs on {TENSORRT}"
    assert misplaced([Node(CPU, "Conv"), Node(TENSORRT, "Gemm")], Provider("tensorrt")) is not None
