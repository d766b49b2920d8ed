"""Tensors that an ONNX file keeps in other files: read into it, from plain files in its own folder only.

The file names its data by path. One that leads out of the folder, through `..`, an absolute path or a link, could put
any file of this machine into a model that is then published.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx

from cnnserve_export.errors import ExportError

# A protobuf message, and so one ONNX file, ends here.
MAX_BYTES = 2**31 - 1


def embed(model: onnx.ModelProto, folder: Path) -> dict[str, str]:
    """Replaces every reference to external data by the data; returns the files' SHA-256 by name.

    Raises `ExportError` for a path that leaves `folder`, a link, data that is not there, and 2 GB or more in all.
    """
    external = [tensor for tensor in tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    total = model.ByteSize()
    digests: dict[str, str] = {}
    for tensor in external:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        path = _inside(folder, location, tensor.name)
        start, length = (_number(entries, key, tensor.name) for key in ("offset", "length"))
        data = _read(path, start or 0, length, MAX_BYTES - total, tensor.name)
        total += len(data)
        tensor.raw_data = data
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        if location not in digests:
            with path.open("rb") as file:
                digests[location] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the file: initialisers, and values of attributes, in functions and nested graphs too."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def _inside(folder: Path, location: str, tensor: str) -> Path:
    where = f"the external data of tensor {tensor!r}, {location!r},"
    relative = PurePosixPath(location)
    if not location or "\0" in location:
        raise ExportError(f"{where} names no file")
    if relative.is_absolute() or "\\" in location or location[1:2] == ":":
        raise ExportError(f"{where} is no path inside the ONNX file's folder; save the model with its data beside it")
    if ".." in relative.parts:
        raise ExportError(f"{where} leads out of the ONNX file's folder; save the model with its data beside it")
    path = folder
    for part in relative.parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise ExportError(f"{where} cannot be read: {error.strerror}") from error
        if stat.S_ISLNK(mode):
            raise ExportError(f"{where} is a symbolic link; put the file itself there")
    if not stat.S_ISREG(mode):
        raise ExportError(f"{where} is no plain file")
    return path


def _number(entries: dict[str, str], key: str, tensor: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ExportError(f"the external data of tensor {tensor!r} has {key} {text!r}, expected a number")
    return int(text)


def _read(path: Path, start: int, length: int | None, room: int, tensor: str) -> bytes:
    # The link check and the opening are two moments: this one refuses a link that came between.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # noqa: PTH123  (Path.open takes no flags)
        size = os.fstat(file.fileno()).st_size
        wanted = max(0, size - start) if length is None else length
        if start + wanted > size:
            raise ExportError(
                f"the external data of tensor {tensor!r} ends at byte {start + wanted}, {path.name} has {size} bytes; "
                "the file is not whole"
            )
        if wanted > room:
            raise ExportError("the model and its external data have 2 GB or more; one ONNX file holds less")
        file.seek(start)
        return file.read(wanted)
