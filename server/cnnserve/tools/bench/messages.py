"""The messages that bench sends: tensors of random numbers, or image files, for each transport."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.wire import classifier_pb2, open_inference_pb2
from cnnserve_client.client import Client
from cnnserve_client.commands import sources
from cnnserve_client.errors import CnnserveError, InvalidInputError
from cnnserve_client.images import read_file
from cnnserve_client.results import TensorInfo, VersionInfo

MOST_IMAGES = 100
_TENSORS = 4
_INFER = "inference.GRPCInferenceService/ModelInfer"
_STREAM_INFER = "inference.GRPCInferenceService/ModelStreamInfer"
_CLASSIFY = "cnnserve.v1.Classifier/Classify"
_CLASSIFY_STREAM = "cnnserve.v1.Classifier/ClassifyStream"


@dataclass(frozen=True)
class Messages:
    """Serialized requests, and the flags of the load generator that send them. `images`: rows of each request."""

    bodies: tuple[bytes, ...]
    flags: tuple[str, ...]
    images: int
    about: str


def tensors(info: VersionInfo, model: str, version: str, batch: int, transport: str) -> Messages:
    """Returns requests with random tensors. Raises `InvalidInputError` if the shape of the input is open."""
    spec = info.input
    if spec is None or spec.datatype not in NUMPY_TYPES:
        kind = "unknown" if spec is None else spec.datatype
        raise InvalidInputError(f"model {model} takes input of type {kind}: send image files with --images")
    if any(size < 1 for size in spec.shape[1:]):
        raise InvalidInputError(
            f"model {model} takes tensors of shape {list(spec.shape)}, of which sizes are open: send image files with "
            "--images"
        )
    generator = np.random.default_rng(0)
    arrays = [_random(generator, (batch, *spec.shape[1:]), spec.datatype) for _ in range(_TENSORS)]
    about = f"tensors {spec.datatype} {[batch, *spec.shape[1:]]}"
    if transport == "http":
        header = _json_header(spec, arrays[0])
        flags = (
            "--http-path",
            _path("v2", model, version) + "/infer",
            "--header",
            "Content-Type: application/octet-stream",
            "--header",
            f"Inference-Header-Content-Length: {len(header)}",
        )
        return Messages(tuple(header + array.tobytes() for array in arrays), flags, batch, about)
    bodies = []
    for array in arrays:
        request = open_inference_pb2.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        bodies.append(request.SerializeToString())
    return Messages(tuple(bodies), _grpc_flags(transport, _INFER, _STREAM_INFER), batch, about)


def sample(info: VersionInfo, batch: int) -> dict[str, "NDArray[np.generic]"]:
    """Returns one tensor by the name of the input."""
    assert info.input is not None
    return {info.input.name: _random(np.random.default_rng(0), (batch, *info.input.shape[1:]), info.input.datatype)}


def images(files: Sequence[bytes], model: str, version: str, batch: int, transport: str) -> Messages:
    """Returns requests with image files, `batch` in each."""
    about = f"{len(files)} image files, {sum(map(len, files)) / len(files) / 1024:,.1f} KiB on average"
    if transport == "http":
        flags = (
            "--http-path",
            _path("v1", model, version) + ":classify",
            "--header",
            "Content-Type: application/octet-stream",
        )
        return Messages(tuple(files), flags, 1, about)
    requests = []
    for first in range(len(files)):
        request = classifier_pb2.ClassifyRequest(model=model, version=version)
        for number in range(batch):
            request.images.add(encoded=files[(first + number) % len(files)])
        requests.append(request)
    bodies = tuple(
        (classifier_pb2.ClassifyStreamRequest(request=each) if transport == "stream" else each).SerializeToString()
        for each in requests
    )
    return Messages(bodies, _grpc_flags(transport, _CLASSIFY, _CLASSIFY_STREAM), batch, about)


def readable(
    client: Client, paths: Sequence[str], model: str, version: str, complain: Callable[[str], None]
) -> list[bytes]:
    """Returns the files that the server can read as images, at most `MOST_IMAGES`; the others are named and counted.

    Raises `InvalidInputError` if there is none, and every error that is none of a single image.
    """
    files: list[bytes] = []
    failed = 0
    for entry in sources.find(paths):
        if len(files) == MOST_IMAGES:
            break
        try:
            data = sources.read(entry, client.max_message_bytes // 2, read_file)
            error: CnnserveError | None = client.classify(data, model=model, version=version, top_k=1).results[0].error
        except InvalidInputError as unreadable:
            error = unreadable
        if error is None:
            files.append(data)
        else:
            failed += 1
            complain(f"{entry.name}: {error}")
    if not files:
        raise InvalidInputError(f"none of the {failed} files of --images can be sent")
    if failed:
        complain(f"{failed} files are left out, {len(files)} are sent in turn")
    return files


def _random(generator: np.random.Generator, shape: tuple[int, ...], datatype: str) -> "NDArray[np.generic]":
    dtype = NUMPY_TYPES[datatype]
    if dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(dtype)
    return generator.integers(0, 256 if datatype == "UINT8" else 2, shape).astype(dtype)


def _json_header(spec: TensorInfo, array: "NDArray[np.generic]") -> bytes:
    size = {"binary_data_size": array.nbytes}
    tensor = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape, "parameters": size}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


def _path(protocol: str, model: str, version: str) -> str:
    return f"/{protocol}/models/{model}" + (f"/versions/{version}" if version else "")


def _grpc_flags(transport: str, unary: str, stream: str) -> tuple[str, ...]:
    return ("--method", stream, "--streaming") if transport == "stream" else ("--method", unary)
