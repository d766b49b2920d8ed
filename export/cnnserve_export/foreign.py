"""Reads an ONNX file to import, and checks it before anything runs it."""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from cnnserve.repository import onnx_precision, other_files
from cnnserve.repository.manifest import TensorInfo
from cnnserve.repository.onnx_precision import Precision
from cnnserve_export import external_data, files, repairs
from cnnserve_export.contract import LARGEST_BATCH_SIZE
from cnnserve_export.errors import ExportError

_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.UINT8: "UINT8"}
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
# ONNX Runtime has the operators of these domains. Operators of others must be functions in the file.
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")


@dataclass(frozen=True)
class Foreign:
    """The ONNX file of a classifier, which has one image tensor as input and one float32 tensor as output.

    `input` has -1 for sizes that the file leaves open; `fixed_batch` is None if the file leaves the batch size open.
    `data` is the file, with its external data embedded if it has any, and with `changes`, which change nothing that it
    computes; `origin` is the manifest's entry about it.
    `parameters` counts the values of its tensors, including statistics of batch normalisation and a few constants.
    """

    model: onnx.ModelProto
    data: bytes
    origin: dict[str, str]
    input: TensorInfo
    fixed_batch: int | None
    opset: int
    parameters: int
    precision: Precision
    changes: tuple[str, ...] = ()


def read(path: Path, output: str | None = None) -> Foreign:
    """Returns the classifier in a file and its external data. Raises `ExportError` if it cannot be served.

    `output` names the output with the classes. Without it the file must have only one output of floats.
    """
    data = _bytes(path)
    model = _parse(data, path)
    digests = external_data.embed(model, path.parent)
    _check_operators(model)
    image = _input(model, path)
    changes = _repaired(model, image.name, _output(model, output, path))
    tensor, fixed_batch = _image(image)
    _datatype(model.graph.output[0], "output", (onnx.TensorProto.FLOAT,))
    origin = {"source": "import", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    if model.producer_name:
        origin["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    if digests or changes:
        data = model.SerializeToString(deterministic=True)
    return Foreign(
        model=model,
        data=data,
        origin={**origin, **{f"external data {name}": digest for name, digest in digests.items()}},
        input=tensor,
        fixed_batch=fixed_batch,
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        parameters=sum(math.prod(item.dims) for item in model.graph.initializer if item.dims),
        precision=onnx_precision.of_file(io.BytesIO(data)),
        changes=changes,
    )


def _repaired(model: onnx.ModelProto, input_name: str, output: str) -> tuple[str, ...]:
    """Changes what only the rules or the server do not allow; returns what was changed, for people."""
    others = len(model.graph.output) - 1
    done = {
        "nodes sorted": repairs.sort_nodes(model),
        f"output {output!r} kept, {others} left out": repairs.keep_output(model, output),
        "float16 input cast": repairs.take_floats(model, input_name),
        "float16 output cast": repairs.return_floats(model),
    }
    return tuple(text for text, changed in done.items() if changed)


def _output(model: onnx.ModelProto, wanted: str | None, path: Path) -> str:
    """Returns the name of the output with the classes: what was asked for, or the only one that holds floats."""
    outputs = list(model.graph.output)
    names = ", ".join(repr(value.name) for value in outputs) or "none"
    if wanted is not None:
        if wanted not in [value.name for value in outputs]:
            raise ExportError(f"{path.name} has no output {wanted!r}; its outputs are {names}")
        _check_tensor("output", next(value for value in outputs if value.name == wanted))
        return wanted
    # Classifiers of scikit-learn and others return a label beside the probabilities of all classes.
    floats = [value.name for value in outputs if value.type.tensor_type.elem_type in _FLOATS]
    if len(floats) == 1:
        return floats[0]
    for value in outputs:
        _check_tensor("output", value)
    if len(outputs) == 1:
        return outputs[0].name
    fix = "choose the one with the classes with --output NAME" if outputs else "import a classifier"
    raise ExportError(f"{path.name} has {len(outputs)} outputs ({names}), {len(floats)} of them with floats; {fix}")


def _bytes(path: Path) -> bytes:
    files.check_plain(path, str(path))
    try:
        if path.stat().st_size > external_data.MAX_BYTES:
            raise ExportError(f"{path} has 2 GiB or more, which no ONNX file can have; use a smaller model")
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}") from error


def _parse(data: bytes, path: Path) -> onnx.ModelProto:
    if other := other_files.named(data[: other_files.HEAD_BYTES]):
        raise ExportError(f"{path.name} is {other}")
    if data.startswith(b"PK\x03\x04"):
        raise ExportError(
            f"{path.name} is a zip archive, like PyTorch's checkpoints; pass checkpoints to cnnserve export"
        )
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ExportError(
            f"{path.name} is not an ONNX file, or not complete ({len(data)} bytes beginning with {data[:16]!r}); "
            "save the model again"
        ) from error
    if not model.ir_version or not model.graph.node:
        raise ExportError(
            f"{path.name} holds no network ({len(data)} bytes beginning with {data[:16]!r}); save the model again"
        )
    return model


def _check_operators(model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model.graph):
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in local:
            raise ExportError(
                f"the file uses operator {node.op_type!r} of domain {node.domain!r}, which ONNX Runtime does not have; "
                "export the network without custom operators"
            )
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            raise ExportError(
                f"the node {node.name!r} ({node.op_type}) is in training mode; export the network again after "
                "network.eval(), with training=TrainingMode.EVAL"
            )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from _nodes(nested)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    # Before IR version 4, files list every initialiser as an input, too.
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in constants]


def _check_tensor(kind: Literal["input", "output"], value: onnx.ValueInfoProto) -> None:
    if value.type.WhichOneof("value") != "tensor_type":
        raise ExportError(
            f"the {kind} {value.name!r} is a {(value.type.WhichOneof('value') or 'thing').removesuffix('_type')}, "
            "not a tensor; if skl2onnx made the file, pass it options={'zipmap': False}"
        )


def _input(model: onnx.ModelProto, path: Path) -> onnx.ValueInfoProto:
    """Returns the only input. Raises `ExportError` if there is another number of them, or no tensor."""
    inputs = _inputs(model)
    for value in inputs:
        _check_tensor("input", value)
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        fix = (
            f"; make a file with one by onnx.utils.extract_model({path.name!r}, 'one.onnx', [INPUT], [OUTPUT])"
            if inputs
            else ""
        )
        raise ExportError(f"{path.name} has {len(inputs)} inputs ({names}), a classifier has one{fix}")
    return inputs[0]


def _image(value: onnx.ValueInfoProto) -> tuple[TensorInfo, int | None]:
    """Returns the input for one image, and the fixed batch size or None."""
    datatype = _datatype(value, "input", tuple(_TYPES))
    shape = tuple(dim.dim_value if dim.dim_value > 0 else -1 for dim in value.type.tensor_type.shape.dim)
    where = f"the input {value.name!r} has shape {[size if size > 0 else '?' for size in shape]}"
    if len(shape) != 4:
        raise ExportError(f"{where}; give a network for images (N, C, H, W) or (N, H, W, C)")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise ExportError(
            f"{where}, which does not show where its 1 or 3 channels are; fix that dimension: "
            f"python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name {value.name} "
            "--input_shape 1,3,224,224 IN.onnx OUT.onnx"
        )
    if shape[0] > LARGEST_BATCH_SIZE:
        raise ExportError(
            f"{where}; the largest batch size is {LARGEST_BATCH_SIZE}: export the network with a free batch"
        )
    layout: Literal["NHWC", "NCHW"] = "NCHW" if first else "NHWC"
    return TensorInfo(value.name, datatype, shape[1:], layout), shape[0] if shape[0] > 0 else None


def _datatype(value: onnx.ValueInfoProto, kind: str, known: tuple[int, ...]) -> str:
    elem_type = value.type.tensor_type.elem_type
    if elem_type not in known:
        names = " or ".join(_name(item) for item in known)
        raise ExportError(f"the {kind} {value.name!r} is {_name(elem_type)}; export the network with {names}")
    return _TYPES[elem_type]


def _name(elem_type: int) -> str:
    return str(onnx.TensorProto.DataType.Name(elem_type)).lower()
