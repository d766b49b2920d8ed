"""ONNX Runtime, and nothing of it past this file.

The only importer of onnxruntime. Its exceptions stop here: a model that cannot be loaded is a `ModelLoadFailed`, a run
that fails is an `InferenceFailed`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from cnnserve.errors import InferenceFailed, ModelLoadFailed

CPU = "CPUExecutionProvider"

# ONNX Runtime's words, the Open Inference Protocol's and numpy's.
_DATATYPES: dict[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorSpec:
    """A model's input or output as the file declares it: -1 where a dimension is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SessionOptions:
    """`threads` for one run; `spin`: whether they may wait busily inside a run (never after it)."""

    threads: int = 1
    spin: bool = True


class Session:
    """One loaded ONNX model. Thread-safe: runs may overlap."""

    def __init__(self, model: Path, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        try:
            self._session = ort.InferenceSession(str(model), _ort_options(options), providers=[CPU])
        except Exception as error:
            # The reason reaches clients; the server's folders are not theirs to know.
            reason = _first_line(error).replace(str(model), model.name)
            raise ModelLoadFailed(f"{model.name} cannot be loaded: {reason}") from error
        self.inputs = tuple(_tensor_spec(value) for value in self._session.get_inputs())
        self.outputs = tuple(_tensor_spec(value) for value in self._session.get_outputs())
        self._output_names = [output.name for output in self.outputs]
        self.placement = self._placement()

    def run(self, batch: NDArray[np.generic]) -> list[NDArray[Any]]:
        """All outputs for one batch of the first input. Raises `InferenceFailed`."""
        try:
            return list(self._session.run(self._output_names, {self.inputs[0].name: batch}))
        except Exception as error:
            raise InferenceFailed(f"ONNX Runtime: {_first_line(error)}") from error

    def _placement(self) -> dict[str, int]:
        """Graph nodes by execution provider, after the optimizer."""
        nodes: Counter[str] = Counter()
        for subgraph in self._session.get_provider_graph_assignment_info():
            nodes[subgraph.ep_name] += len(subgraph.get_nodes())
        return dict(nodes)


def runtime_version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def _ort_options(options: SessionOptions) -> ort.SessionOptions:
    result = ort.SessionOptions()
    # Explicit counts: with 0, ONNX Runtime takes every core of the host and pins threads to them.
    result.intra_op_num_threads = options.threads
    result.inter_op_num_threads = 1
    # Problems are raised; its own log lines would say them a second time.
    result.log_severity_level = 4
    result.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    result.add_session_config_entry("session.force_spinning_stop", "1")
    result.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return result


def _tensor_spec(value: Any) -> TensorSpec:
    datatype = _DATATYPES.get(value.type)
    if datatype is None:
        known = ", ".join(_DATATYPES)
        raise ModelLoadFailed(f"tensor {value.name!r} has type {value.type}, this server serves {known}")
    return TensorSpec(value.name, datatype, _sizes(value.shape))


def _sizes(shape: Sequence[object]) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in shape)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
