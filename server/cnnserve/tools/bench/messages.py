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
_BINARY = "Content-Type: application/octet-stream"


@dataclass(frozen=True)
class Messages:
    """Serialized requests. `images`: rows of each. `method` of gRPC, or `http_path` with `headers`, gets them."""

    bodies: tuple[bytes, ...]
    images: int
    about: str
    method: str = ""
    streaming: bool = False
    http_path: str = ""
    headers: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """Returns the flags of the load generator that send the requests."""
        if self.http_path:
            return ["--http-path", self.http_path, *(word for line in self.headers for word in ("--header", line))]
        return ["--method", self.method, *(["--streaming"] if self.streaming else [])]


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
        path = _path("v2", model, version) + "/infer"
        headers = (_BINARY, f"Inference-Header-Content-Length: {len(header)}")
        bodies_of_http = tuple(header + array.tobytes() for array in arrays)
        return Messages(bodies_of_http, batch, about, http_path=path, headers=headers)
    bodies = []
    for array in arrays:
        request = open_inference_pb2.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        bodies.append(request.SerializeToString())
    streaming = transport == "stream"
    return Messages(tuple(bodies), batch, about, _STREAM_INFER if streaming else _INFER, streaming)


def sample(info: VersionInfo, batch: int) -> dict[str, "NDArray[np.generic]"]:
    """Returns one tensor by the name of the input."""
    assert info.input is not None
    return {info.input.name: _random(np.random.default_rng(0), (batch, *info.input.shape[1:]), info.input.datatype)}


def images(files: Sequence[bytes], model: str, version: str, batch: int, transport: str) -> Messages:
    """Returns requests with image files, `batch` in each."""
    about = f"{len(files)} image files, {sum(map(len, files)) / len(files) / 1024:,.1f} KiB on average"
    if transport == "http":
        path = _path("v1", model, version) + ":classify"
        return Messages(tuple(files), 1, about, http_path=path, headers=(_BINARY,))
    streaming = transport == "stream"
    requests = []
    for first in range(len(files)):
        request = classifier_pb2.ClassifyRequest(model=model, version=version)
        for number in range(batch):
            request.images.add(encoded=files[(first + number) % len(files)])
        requests.append(request)
    bodies = tuple(
        (classifier_pb2.ClassifyStreamRequest(request=each) if streaming else each).SerializeToString()
        for each in requests
    )
    return Messages(bodies, batch, about, _CLASSIFY_STREAM if streaming else _CLASSIFY, streaming)


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
