"""Reads `model_warmup`: runs that a config asks for before the version is READY."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import ModelLoadFailed, reason
from cnnserve.model_config.settings import Settings
from cnnserve.wire import model_config_pb2 as pb

FOLDER = "warmup"
_MAX_RUNS = 1000
Read = Callable[[str], bytes]


def batches(config: pb.ModelConfig | None, read: Read, settings: Settings) -> Iterator[NDArray[Any]]:
    """Yields the rows of each run, in order. Files are in the model's `warmup` folder. Raises `ModelLoadFailed`.

    `read` returns the content of a file in the model's folder.
    """
    for sample in config.model_warmup if config else ():
        where = f'config.pbtxt: model_warmup "{sample.name}"'
        size = max(1, sample.batch_size)
        if size > settings.max_batch_size:
            raise ModelLoadFailed(f"{where}: batch_size is {size}, the limit is {settings.max_batch_size}")
        if sample.count > _MAX_RUNS:
            raise ModelLoadFailed(f"{where}: count is {sample.count}, the limit is {_MAX_RUNS}")
        if list(sample.inputs) != [settings.input.name]:
            names = ", ".join(sample.inputs) or "none"
            raise ModelLoadFailed(f'{where}: inputs are {names}, expected "{settings.input.name}"')
        row = _row(sample.inputs[settings.input.name], where, read, settings)
        for _ in range(max(1, sample.count)):
            yield np.repeat(row, size, axis=0)


def _row(data: pb.ModelWarmup.Input, where: str, read: Read, settings: Settings) -> NDArray[Any]:
    """Returns one row in the shape of the ONNX file, with a batch dimension."""
    dtype = NUMPY_TYPES[settings.input.datatype]
    if data.data_type != pb.DataType.Value(f"TYPE_{settings.input.datatype}"):
        given = pb.DataType.Name(data.data_type)
        raise ModelLoadFailed(f"{where}: data_type is {given}, expected TYPE_{settings.input.datatype}")
    dims, wanted = tuple(data.dims), settings.input.dims
    if len(dims) != len(wanted) or any(w not in (-1, got) for got, w in zip(dims, wanted, strict=True)):
        raise ModelLoadFailed(f"{where}: dims are {list(dims)}, expected {list(wanted)}")
    if min(dims, default=1) < 1:
        raise ModelLoadFailed(f"{where}: dims are {list(dims)}, expected sizes of 1 or more")
    values = _values(data, where, read, dims, dtype)
    return values.reshape(-1, *(settings.input_reshape or (dims if settings.batched else dims[1:])))


def _values(
    data: pb.ModelWarmup.Input, where: str, read: Read, dims: Sequence[int], dtype: np.dtype[Any]
) -> NDArray[Any]:
    choice = data.WhichOneof("input_data_type")
    if choice == "input_data_file":
        return _file(read, data.input_data_file, where, dims, dtype)
    if choice is None or not getattr(data, choice):
        raise ModelLoadFailed(f"{where}: set zero_data, random_data or input_data_file")
    if choice == "zero_data":
        return np.zeros(dims, dtype)
    return np.random.default_rng(0).uniform(0, 1 if dtype.kind == "f" else 127, dims).astype(dtype)


def _file(read: Read, name: str, where: str, dims: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    if name.startswith("/") or ".." in name.split("/"):
        raise ModelLoadFailed(
            f"{where}: input_data_file {name!r} is outside the model's {FOLDER} folder; move it there"
        )
    try:
        data = read(f"{FOLDER}/{name}")
    except OSError as error:
        raise ModelLoadFailed(f"{where}: input_data_file {name!r} cannot be read: {reason(error)}") from error
    expected = int(np.prod(dims)) * dtype.itemsize
    if len(data) != expected:
        raise ModelLoadFailed(
            f"{where}: input_data_file {name!r} has {len(data)} bytes, expected {expected} for {list(dims)}"
        )
    return np.frombuffer(data, dtype).reshape(dims)
