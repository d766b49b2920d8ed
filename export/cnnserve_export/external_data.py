"""Embeds tensors that an ONNX file keeps in other files, but only from regular files in the folder of the ONNX file.

The ONNX file names the other files by path. A path that leads out of the folder, through `..`, as absolute path or
through a link, could put any file of this machine into a model that is then published.
"""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import onnx

from cnnserve_export.errors import ExportError

# Largest size in bytes of a protobuf message, and so of an ONNX file.
MAX_BYTES = 2**31 - 1


def embed(model: onnx.ModelProto, folder: Path) -> dict[str, str]:
    """Replaces every reference to external data by the data; returns the SHA-256 of each file by its path.

    Raises `ExportError` if a path leads out of `folder` or to a link, if data is missing, and if the model and its data
    have 2 GiB or more together.
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
    """Yields every tensor of the file: initialisers and values of attributes, also in functions and nested graphs."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)
        yield from _of_attributes(function.attribute_proto)
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
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
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
        raise ExportError(f"{where} names no file; save the model again")
    if relative.is_absolute() or "\\" in location or location[1:2] == ":":
        raise ExportError(
            f"{where} is not a path inside the ONNX file's folder; save the model with its data beside it"
        )
    if ".." in relative.parts:
        raise ExportError(f"{where} leads out of the ONNX file's folder; save the model with its data beside it")
    path = folder
    for part in relative.parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise ExportError(f"{where} cannot be read: {error.strerror}; put the file there") from error
        if stat.S_ISLNK(mode):
            raise ExportError(f"{where} is a symbolic link; put the file itself there")
    if not stat.S_ISREG(mode):
        raise ExportError(f"{where} is not a regular file; put the file itself there")
    return path


def _number(entries: dict[str, str], key: str, tensor: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise ExportError(
            f"the external data of tensor {tensor!r} has {key} {text!r}, not a number; save the model again"
        )
    return int(text)


def _read(path: Path, start: int, length: int | None, room: int, tensor: str) -> bytes:
    # A link may appear after `_inside` has checked the path, so the file is opened without following links.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:  # noqa: PTH123  (Path.open takes no flags)
        size = os.fstat(file.fileno()).st_size
        wanted = max(0, size - start) if length is None else length
        if start + wanted > size:
            raise ExportError(
                f"the external data of tensor {tensor!r} ends at byte {start + wanted}, but {path.name} has {size} "
                "bytes; copy the whole file"
            )
        if wanted > room:
            raise ExportError(
                "the model and its external data have 2 GiB or more, but an ONNX file holds less; use a smaller model"
            )
        file.seek(start)
        return file.read(wanted)
