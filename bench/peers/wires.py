"""How servers take tensors and images: the requests, and the probabilities in the responses."""

import base64
import http.client
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from cnnserve.tools.bench.messages import Messages
from cnnserve.tools.bench.target import Target
from cnnserve.wire import classifier_pb2
from cnnserve.wire import open_inference_pb2 as oip
from peers.inputs import Inputs

Rows = NDArray[np.float32]

_TIMEOUT_S = 30.0
_INFER = "inference.GRPCInferenceService/ModelInfer"
_CLASSIFY = "cnnserve.v1.Classifier/Classify"
_BINARY = ("Content-Type: application/octet-stream",)


class BadResponse(Exception):
    """A response that has no probabilities."""


@dataclass(frozen=True)
class Way:
    """One kind of input over one protocol. `path`: that of HTTP, or the method of gRPC.

    `read` returns the probabilities in a response; NaN for classes that it leaves out.
    """

    kind: str
    protocol: str
    path: str
    headers: Sequence[str]
    bodies: Sequence[bytes]
    read: Callable[[bytes], Rows]

    @property
    def name(self) -> str:
        """The name in results."""
        return f"{self.kind} {self.protocol}"

    @property
    def messages(self) -> Messages:
        """What the load generator sends."""
        bodies, headers = tuple(self.bodies), tuple(self.headers)
        if self.protocol == "gRPC":
            return Messages(bodies, 1, self.name, method=self.path)
        return Messages(bodies, 1, self.name, http_path=self.path, headers=headers)

    def ask(self, target: Target, number: int) -> Rows:
        """Returns the probabilities for one of the bodies. Raises `OSError` or `BadResponse`."""
        if self.protocol == "gRPC":
            return self.parsed(target.call(self.path, self.bodies[number], _TIMEOUT_S))
        connection = http.client.HTTPConnection(target.http, timeout=_TIMEOUT_S)
        headers = dict(header.split(": ", 1) for header in self.headers)
        try:
            connection.request("POST", self.path, self.bodies[number], headers)
            response = connection.getresponse()
            body = response.read()
        except http.client.HTTPException as error:
            raise BadResponse(repr(error)) from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise BadResponse(f"HTTP {response.status}: {body[:200]!r}")
        return self.parsed(body)

    def parsed(self, body: bytes) -> Rows:
        """Returns the probabilities in a response. Raises `BadResponse`."""
        try:
            return self.read(body)
        except (ValueError, LookupError, TypeError, DecodeError) as error:
            raise BadResponse(f"{error!r} in {body[:200]!r}") from error


def cnnserve(inputs: Inputs) -> list[Way]:
    """Returns the ways of cnnserve: both protocols for each kind of input."""
    model, classes = inputs.model, inputs.classes
    path = f"/v1/models/{model}:classify"
    return [
        *_oip_tensors(inputs),
        Way("tensor", "HTTP", f"/v2/models/{model}/infer", *_oip_http(inputs)),
        *_if_any(
            Way("image", "gRPC", _CLASSIFY, (), [_classify(model, file) for file in inputs.images], _classes(classes)),
            Way("image", "HTTP", path, _BINARY, inputs.images, _json_classes(classes)),
        ),
    ]


def empty(inputs: Inputs) -> list[Way]:
    """Returns the way of the server that runs no model."""
    return _oip_tensors(inputs)


def raw(inputs: Inputs, path: str = "/infer") -> list[Way]:
    """Returns the ways of a server that takes the bytes of a tensor or an image, and returns those of the output."""
    return [
        Way("tensor", "HTTP", path, _BINARY, inputs.tensors, _floats),
        *_if_any(Way("image", "HTTP", path, _BINARY, inputs.images, _floats)),
    ]


def miraserver(inputs: Inputs) -> list[Way]:
    """Returns the ways of miraserver, which has a path for each model."""
    return raw(inputs, f"/v2/models/{inputs.model}/infer")


def oip_grpc(inputs: Inputs) -> list[Way]:
    """Returns the ways of a server that takes the Open Inference Protocol over gRPC; images are bytes."""
    bodies = [_oip_request(inputs, file, "BYTES", (1,)) for file in inputs.images]
    return [*_oip_tensors(inputs), *_if_any(Way("image", "gRPC", _INFER, (), bodies, _oip_answer))]


def litserve(inputs: Inputs) -> list[Way]:
    """Returns the ways of LitServe, which takes and returns JSON: bytes are base64."""
    return _base64(inputs, lambda text: {"body": text}, lambda answer: answer["probabilities"])


def bentoml(inputs: Inputs) -> list[Way]:
    """Returns the ways of BentoML, whose batches are lists in JSON: bytes are base64."""
    return _base64(inputs, lambda text: {"bodies": [text]}, lambda answer: answer[0])


WIRES = {"raw": raw, "oip": oip_grpc, "litserve": litserve, "bentoml": bentoml, "miraserver": miraserver}


def _base64(inputs: Inputs, wrap: Callable[[str], Any], unwrap: Callable[[Any], str]) -> list[Way]:
    headers = ("Content-Type: application/json",)

    def way(kind: str, contents: Sequence[bytes]) -> Way:
        bodies = [json.dumps(wrap(base64.b64encode(content).decode())).encode() for content in contents]
        return Way(
            kind, "HTTP", "/infer", headers, bodies, lambda body: _floats(base64.b64decode(unwrap(json.loads(body))))
        )

    return [way("tensor", inputs.tensors), *_if_any(way("image", inputs.images))]


def _if_any(*ways: Way) -> list[Way]:
    return [way for way in ways if way.bodies]


def _oip_tensors(inputs: Inputs) -> list[Way]:
    bodies = [_oip_request(inputs, tensor, "UINT8", (1, *inputs.shape)) for tensor in inputs.tensors]
    return [Way("tensor", "gRPC", _INFER, (), bodies, _oip_answer)]


def _oip_request(inputs: Inputs, content: bytes, datatype: str, shape: Sequence[int]) -> bytes:
    if datatype == "BYTES":
        content = len(content).to_bytes(4, "little") + content
    request = oip.ModelInferRequest(model_name=inputs.model, raw_input_contents=[content])
    request.inputs.add(name=inputs.input_name, datatype=datatype, shape=shape)
    return request.SerializeToString()


def _oip_answer(body: bytes) -> Rows:
    response = oip.ModelInferResponse.FromString(body)
    if response.raw_output_contents:
        return _floats(response.raw_output_contents[0])
    return np.array(response.outputs[0].contents.fp32_contents, np.float32)


def _oip_http(inputs: Inputs) -> tuple[Sequence[str], Sequence[bytes], Callable[[bytes], Rows]]:
    """Returns headers, bodies and reader of tensors as binary data after a head in JSON."""
    size = {"binary_data_size": len(inputs.tensors[0])}
    tensor = {"name": inputs.input_name, "datatype": "UINT8", "shape": [1, *inputs.shape], "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = (*_BINARY, f"Inference-Header-Content-Length: {len(head)}")
    return headers, [head + data for data in inputs.tensors], lambda body: _floats(body[-4 * inputs.classes :])


def _classify(model: str, file: bytes) -> bytes:
    images = [classifier_pb2.Image(encoded=file)]
    return classifier_pb2.ClassifyRequest(model=model, images=images).SerializeToString()


def _classes(count: int) -> Callable[[bytes], Rows]:
    def read(body: bytes) -> Rows:
        found = classifier_pb2.ClassifyResponse.FromString(body).results[0].classes
        return _sparse(count, [(each.index, each.probability) for each in found])

    return read


def _json_classes(count: int) -> Callable[[bytes], Rows]:
    def read(body: bytes) -> Rows:
        found = json.loads(body)["results"][0]["classes"]
        return _sparse(count, [(each["index"], each["probability"]) for each in found])

    return read


def _sparse(count: int, known: Sequence[tuple[int, float]]) -> Rows:
    if not known:
        raise ValueError("no class")
    row = np.full(count, np.nan, np.float32)
    for index, probability in known:
        row[index] = probability
    return row


def _floats(body: bytes) -> Rows:
    return np.frombuffer(body, np.float32)
