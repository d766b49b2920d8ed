"""Bursts of gRPC calls, streams and resets, and what became of them. Used by tests of any length."""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter

import grpc

from cnnserve.wire import open_inference_pb2 as pb
from support import HANG_S

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
PUSHBACK = "grpc-retry-pushback-ms"
# A retry would hide what a call got.
_OPTIONS = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _WINDOW_UPDATE = 1, 3, 4, 8
_CANCEL = 8


def digits(seed: int = 0) -> pb.ModelInferRequest:
    """Returns a request for LeNet-5 with one row."""
    request = pb.ModelInferRequest(model_name="lenet5", id=str(seed))
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 28, 28, 1])
    request.raw_input_contents.append(bytes((seed * 7 + index) % 256 for index in range(784)))
    return request


def calls(address: str, channels: int, each: int) -> Counter[str]:
    """Makes `each` unary calls at once on each of `channels` connections, and counts their statuses.

    Refusals without a time for the retry, and answers to other requests, count as "no pushback" and "wrong answer".
    """
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(grpc.insecure_channel(address, _OPTIONS)) for _ in range(channels)]
        for channel in opened:
            grpc.channel_ready_future(channel).result(HANG_S)
        asks = [
            channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
            for channel in opened
        ]
        requests = [digits(seed) for seed in range(8)]
        futures = [ask.future(requests[index % 8], timeout=HANG_S) for index in range(each) for ask in asks]
        for number, future in enumerate(futures):
            counts[_outcome(future, str(number // channels % 8))] += 1
    return counts


def _outcome(future: grpc.Future, wanted: str) -> str:
    try:
        return "OK" if future.result().id == wanted else "wrong answer"
    except grpc.RpcError as error:
        code: str = error.code().name
        if code == "RESOURCE_EXHAUSTED" and PUSHBACK not in dict(error.trailing_metadata() or ()):
            return "no pushback"
        return code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns an HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def headers(address: str, method: str, stream: int) -> bytes:
    """Returns the frame that opens a gRPC call on a new stream of a connection."""

    def text(value: str) -> bytes:
        return bytes((len(value),)) + value.encode()

    block = b"\x83\x86" + b"\x04" + text(method) + b"\x01" + text(address) + b"\x0f\x10" + text("application/grpc")
    return frame(_HEADERS, 4, stream, block + b"\x00" + text("te") + text("trailers"))


class Connection:
    """A connection that speaks HTTP/2; a thread reads and drops what the server sends."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), HANG_S)
        self._sending = threading.Lock()
        self.send(_PREFACE + frame(_SETTINGS, 0, 0) + frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)))
        threading.Thread(target=self._drop, daemon=True).start()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Sends frames. Raises `OSError` if the server has closed the connection."""
        with self._sending:
            self._socket.sendall(data)

    def _drop(self) -> None:
        # Settings have to be acknowledged, and nothing else.
        acknowledged = False
        with contextlib.suppress(OSError):
            while self._socket.recv(65536):
                if not acknowledged:
                    self.send(frame(_SETTINGS, 1, 0))
                    acknowledged = True


def open_streams(address: str, connections: int, each: int) -> contextlib.ExitStack:
    """Opens calls of a stream that send nothing; closing the result ends the connections."""
    stack = contextlib.ExitStack()
    for _ in range(connections):
        client = stack.enter_context(Connection(address))
        with contextlib.suppress(OSError):
            for number in range(each):
                client.send(headers(address, STREAM, 2 * number + 1))
    return stack


def resets(address: str, count: int, seconds: float) -> int:
    """Opens `count` calls and resets each at once, spread over at least `seconds`; returns how many could be sent."""
    sent, started = 0, time.monotonic()
    with Connection(address) as client, contextlib.suppress(OSError):
        for number in range(count):
            stream = 2 * number + 1
            client.send(headers(address, INFER, stream) + frame(_RST_STREAM, 0, stream, struct.pack(">I", _CANCEL)))
            sent += 1
            ahead = number / count * seconds - (time.monotonic() - started)
            if ahead > 0.01:
                time.sleep(ahead)
    return sent
