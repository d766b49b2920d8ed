"""Checks which execution provider runs which node of a graph."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cnnserve.model_config.providers import CPU, CUDA, TENSORRT, Provider

# Operators of arithmetic on shapes. ONNX Runtime leaves such nodes on the CPU on purpose, because it needs their few
# integers there. It does not report the types of a node's tensors, so the operator decides, and only in a graph that
# reads a shape at all. All these operators have CUDA kernels, so none is on the CPU for lack of a kernel.
_SHAPE_SOURCES = frozenset({"Shape", "Size"})
_SHAPE_OPERATORS = _SHAPE_SOURCES | {
    "Add",
    "Cast",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Gather",
    "Mul",
    "Range",
    "Slice",
    "Squeeze",
    "Sub",
    "Unsqueeze",
}
_ACCEPTED = {"cpu": {CPU}, "cuda": {CUDA}, "tensorrt": {TENSORRT, CUDA}}
_NAMED = 5


@dataclass(frozen=True)
class Node:
    """One node of the optimized graph."""

    provider: str
    operator: str


def nodes_per_provider(nodes: Sequence[Node]) -> dict[str, int]:
    """Returns the number of nodes that each provider runs."""
    return dict(Counter(node.provider for node in nodes))


def misplaced(nodes: Sequence[Node], provider: Provider) -> str | None:
    """Returns a text about the nodes that do not run on `provider`. None if only arithmetic on shapes does not."""
    if provider.kind == "tensorrt" and not any(node.provider == TENSORRT for node in nodes):
        return f"none of {len(nodes)} nodes runs on {TENSORRT}"
    asks_shapes = any(node.operator in _SHAPE_SOURCES for node in nodes)
    allowed = _SHAPE_OPERATORS if asks_shapes else frozenset()
    elsewhere = [
        node
        for node in nodes
        if node.provider not in _ACCEPTED[provider.kind] and not (node.provider == CPU and node.operator in allowed)
    ]
    if not elsewhere:
        return None
    operators = Counter(node.operator for node in elsewhere).most_common()
    named = ", ".join(f"{count} {operator}" for operator, count in operators[:_NAMED])
    more = ", ..." if len(operators) > _NAMED else ""
    where = ", ".join(sorted({node.provider for node in elsewhere}))
    return f"{len(elsewhere)} of {len(nodes)} nodes run on {where} instead of {provider.name} ({named}{more})"
