"""Peers that are slow, clumsy or hostile. Each function does its worst once, for about a second, and returns.

A server may end their connections whenever it likes, so they ignore every error of a connection.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable

import grpc

from bursts import INFER, Connection, calls, frame, headers, open_streams, resets
from cnnserve.wire import classifier_pb2
from support import RunningServer

MIB = 2**20
CLASSIFY = "/cnnserve.v1.Classifier/Classify"
_INFER_PATH = b"/v2/models/lenet5/infer"
_DATA = 0
# Bytes below the limit of a message, so that it is read and not refused by its size.
_LARGE = 56 * MIB

Peer = Callable[[RunningServer], None]


def _http(server: RunningServer) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.http_port), 10)
    client.settimeout(0.5)
    return client


def one_byte_chunks(server: RunningServer) -> None:
    """Sends a body in chunks of one byte."""
    head = b"POST " + _INFER_PATH + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _http(server) as client:
        client.sendall(head)
        for _ in range(20):
            client.sendall(b"1\r\nx\r\n" * 2000)


def slow_heads(server: RunningServer) -> None:
    """Sends the head of a request byte by byte."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_http(server)) for _ in range(20)]
        for byte in b"POST /v2/mo":
            for client in clients:
                client.sendall(bytes([byte]))
            time.sleep(0.1)


def silent_connections(server: RunningServer) -> None:
    """Opens connections on both ports and says nothing."""
    with contextlib.ExitStack() as stack:
        for port in (server.http_port, server.grpc_port):
            for _ in range(100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        time.sleep(1)


def silent_streams(server: RunningServer) -> None:
    """Opens streams that send no message."""
    with open_streams(server.address, 5, 100):
        time.sleep(1)


def many_resets(server: RunningServer) -> None:
    """Opens calls and resets them at once."""
    resets(server.address, 2000, 0.5)


def many_calls(server: RunningServer) -> None:
    """Makes many good calls at once; none of them is CANCELLED."""
    counts = calls(server.address, 4, 250)
    assert set(counts) <= {"OK", "RESOURCE_EXHAUSTED"}, counts


def unfinished_messages(server: RunningServer) -> None:
    """Announces large messages and stops in the middle."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(Connection(server.address)) for _ in range(10)]
        for client in opened:
            client.send(headers(server.address, INFER, 1))
            client.send(frame(_DATA, 0, 1, b"\0" + struct.pack(">I", _LARGE)))
            client.send(frame(_DATA, 0, 1, bytes(16_000)))
        time.sleep(1)


def compressed_messages(server: RunningServer) -> None:
    """Sends messages that unpack to a thousand times their size."""
    body = classifier_pb2.ClassifyRequest(model="lenet5", images=[classifier_pb2.Image(encoded=bytes(_LARGE))])
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(server.address, options) as channel:
        ask = channel.unary_unary(CLASSIFY, classifier_pb2.ClassifyRequest.SerializeToString)
        futures = [ask.future(body, timeout=60, compression=grpc.Compression.Gzip) for _ in range(3)]
        for future in futures:
            with contextlib.suppress(grpc.RpcError):
                future.result()


def unread_answers(server: RunningServer) -> None:
    """Sends requests ahead of their answers, and reads none of these."""
    body = bytes(784)
    head = b"POST " + _INFER_PATH + b" HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
    with _http(server) as client:
        client.settimeout(1)
        client.sendall((head + b"Content-Length: %d\r\n\r\n" % len(body) + body) * 2000)


def leaving_clients(server: RunningServer) -> None:
    """Sends requests and leaves before the answers come, with half of the last one unsent."""
    head = b"POST " + _INFER_PATH + b" HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
    for _ in range(50):
        with _http(server) as client:
            client.sendall(head + b"Content-Length: 784\r\n\r\n" + bytes(300))


def nonsense(server: RunningServer) -> None:
    """Sends bytes of no protocol to both ports."""
    for port in (server.http_port, server.grpc_port):
        for data in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 5000):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.settimeout(0.2)
                with contextlib.suppress(OSError):
                    client.sendall(data)
                    client.recv(100)


PEERS: tuple[Peer, ...] = (
    one_byte_chunks,
    slow_heads,
    silent_connections,
    silent_streams,
    many_resets,
    many_calls,
    unfinished_messages,
    compressed_messages,
    unread_answers,
    leaving_clients,
    nonsense,
)
