"""A client for the Open Inference Protocol, and its requests and responses."""

from types import TracebackType
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

from cnnserve.wire import open_inference_pb2 as o
from support import SIDE, picture

SERVICE = "inference.GRPCInferenceService"
TIMEOUT_S = 30.0


class Oip:
    """Calls RPCs of a real server by their names."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def __enter__(self) -> "Oip":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.channel.close()

    def rpc(self, name: str) -> Any:
        """Returns the callable of a unary RPC."""
        answer = getattr(o, f"{name}Response")
        return self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def __call__(self, name: str, request: Message | None = None) -> Any:
        return self.rpc(name)(request or getattr(o, f"{name}Request")(), timeout=TIMEOUT_S)

    def fails(self, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
        """Returns code and text of the status of a call, which must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self(name, request)
        return caught.value.code(), caught.value.details()

    def stream(self, requests: Any, metadata: Any = (), timeout: float = TIMEOUT_S) -> Any:
        """Calls ModelStreamInfer and returns the call, which yields the responses."""
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=o.ModelInferRequest.SerializeToString,
            response_deserializer=o.ModelStreamInferResponse.FromString,
        )(requests, timeout=timeout, metadata=metadata)


def rows(count: int = 1, side: int = SIDE) -> np.ndarray:
    """Returns an input tensor of tiny models, with `count` images of class left."""
    pixels = np.zeros((count, side, SIDE, 1), np.uint8)
    pixels[:, :, : SIDE // 2] = 255
    return pixels


def tensor(array: np.ndarray | None = None, model: str = "tiny", **fields: Any) -> o.ModelInferRequest:
    """Returns a request with raw contents for a tiny model."""
    array = rows() if array is None else array
    request = o.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
    request.inputs.add(name="image", datatype="UINT8", shape=array.shape)
    return request


def encoded(*images: bytes, shape: list[int] | None = None, model: str = "tiny", **fields: Any) -> o.ModelInferRequest:
    """Returns a request with image files in a BYTES tensor."""
    images = images or (picture("left"),)
    raw = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    request = o.ModelInferRequest(model_name=model, raw_input_contents=[raw], **fields)
    request.inputs.add(name="image", datatype="BYTES", shape=shape or [len(images)])
    return request


def with_parameter(message: Any, name: str, **value: Any) -> Any:
    """Adds an Open Inference parameter to a message and returns the message."""
    message.parameters[name].CopyFrom(o.InferParameter(**value))
    return message


def floats(answer: o.ModelInferResponse, output: int = 0) -> np.ndarray:
    """Returns an output of type FP32."""
    return np.frombuffer(answer.raw_output_contents[output], np.float32).reshape(answer.outputs[output].shape)


def strings(answer: o.ModelInferResponse, output: int = 0) -> list[str]:
    """Returns the elements of an output of type BYTES."""
    raw, texts = answer.raw_output_contents[output], []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts
