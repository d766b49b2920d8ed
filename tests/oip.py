"""Open Inference requests to a real server."""

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
    """Calls RPCs of the service by their names."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address)

    def __enter__(self) -> "Oip":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.channel.close()

    def rpc(self, name: str) -> Any:
        """One unary RPC that takes a message."""
        answer = getattr(o, f"{name}Response")
        return self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )

    def __call__(self, name: str, request: Message | None = None) -> Any:
        return self.rpc(name)(request or getattr(o, f"{name}Request")(), timeout=TIMEOUT_S)

    def fails(self, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
        """The status of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self(name, request)
        return caught.value.code(), caught.value.details()

    def stream(self, requests: Any, metadata: Any = ()) -> Any:
        """ModelStreamInfer."""
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=o.ModelInferRequest.SerializeToString,
            response_deserializer=o.ModelStreamInferResponse.FromString,
        )(requests, timeout=TIMEOUT_S, metadata=metadata)


def rows(count: int = 1, side: int = SIDE) -> np.ndarray:
    """Tiny models' input: images of class left."""
    pixels = np.zeros((count, side, SIDE, 1), np.uint8)
    pixels[:, :, : SIDE // 2] = 255
    return pixels


def tensor(array: np.ndarray | None = None, model: str = "tiny", **fields: Any) -> o.ModelInferRequest:
    """A raw request for a tiny model."""
    array = rows() if array is None else array
    request = o.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
    request.inputs.add(name="image", datatype="UINT8", shape=array.shape)
    return request


def encoded(*images: bytes, shape: list[int] | None = None, model: str = "tiny", **fields: Any) -> o.ModelInferRequest:
    """Image files as one BYTES tensor."""
    images = images or (picture("left"),)
    raw = b"".join(len(image).to_bytes(4, "little") + image for image in images)
    request = o.ModelInferRequest(model_name=model, raw_input_contents=[raw], **fields)
    request.inputs.add(name="image", datatype="BYTES", shape=shape or [len(images)])
    return request


def with_parameter(message: Any, name: str, **value: Any) -> Any:
    """The same message with an Open Inference parameter."""
    message.parameters[name].CopyFrom(o.InferParameter(**value))
    return message


def floats(answer: o.ModelInferResponse, output: int = 0) -> np.ndarray:
    """An output of FP32."""
    return np.frombuffer(answer.raw_output_contents[output], np.float32).reshape(answer.outputs[output].shape)


def strings(answer: o.ModelInferResponse, output: int = 0) -> list[str]:
    """An output of BYTES."""
    raw, texts = answer.raw_output_contents[output], []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        texts.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return texts
