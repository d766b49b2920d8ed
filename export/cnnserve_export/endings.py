"""What an ONNX graph ends in: which operator makes the values of its output, and so what these values are."""

from typing import Literal

import onnx

Ending = Literal["softmax", "log-softmax", "sigmoid", "unknown"]

_OPERATORS: dict[str, Ending] = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid"}
# They choose, move, name or round values, and keep what each value means.
_KEEP = frozenset(
    (
        *("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear"),
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Gather", "Slice"),
    )
)


def ending(model: onnx.ModelProto, output: str | None = None) -> Ending:
    """Returns what makes the values of `output`, by default of the only output."""
    name = model.graph.output[0].name if output is None else output
    makers = {result: node for node in model.graph.node for result in node.output}
    seen: set[str] = set()
    while name not in seen and (node := makers.get(name)) is not None:
        if node.domain not in ("", "ai.onnx"):
            return "unknown"
        if node.op_type in _OPERATORS:
            return _OPERATORS[node.op_type]
        if node.op_type not in _KEEP or not node.input:
            return "unknown"
        seen.add(name)
        name = node.input[0]
    return "unknown"
