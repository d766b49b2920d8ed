"""Which execution provider got which node of a graph, and whether that is what was asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cnnserve.model_config.providers import CPU, CUDA, TENSORRT, Provider

# Integer arithmetic on shapes. ONNX Runtime keeps it on the CPU on purpose, where its few numbers are needed. The types
# of a node's tensors are not told, so this is judged by operator, and only in a graph that asks for a shape at all:
# every one of these also has a CUDA kernel, so none of them is on the CPU for want of one.
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
    """How many nodes each provider runs."""
    return dict(Counter(node.provider for node in nodes))


def misplaced(nodes: Sequence[Node], provider: Provider) -> str | None:
    """What runs elsewhere than on `provider`, in words; None where nothing does but the arithmetic of shapes."""
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
