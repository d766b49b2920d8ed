"""What HTTP clients may make a server hold stays within its memory budget, wherever it is held."""

import base64
import contextlib
import gzip
import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import HANG_S, REPOSITORY, RunningServer, picture, serving, wait_until, write_wide
from watching import MIB, Watched

LIMIT_MIB = 128
# Above the idle size.
MOST_MIB = 384
CLASSIFY = "/v1/models/lenet5:classify"
PREDICT = "/v1/models/lenet5:predict"
INFER = "/v2/models/lenet5/infer"


def ask(server: RunningServer, path: str, body: bytes, headers: dict[str, str] | None = None) -> int:
    """Returns the status of one request on a connection of its own; 0 if the connection ended before."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
    with contextlib.closing(connection):
        try:
            connection.request("POST", path, body, headers or {})
            response = connection.getresponse()
            response.read()
        except (ConnectionError, http.client.HTTPException):
            return 0
        return response.status


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with serving(tmp_path / "log", REPOSITORY, "--max-pending-mib", str(LIMIT_MIB)) as server:
        # Imports and pools that the first requests bring are part of the idle size.
        assert ask(server, CLASSIFY, picture("left")) == 200
        watched = Watched(server)
        try:
            yield watched
            assert ask(server, CLASSIFY, picture("left")) == 200
            assert "Traceback" not in server.log
        finally:
            watched.close()


def at_once(server: RunningServer, path: str, bodies: list[bytes], headers: dict[str, str] | None = None) -> set[int]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return set(pool.map(lambda body: ask(server, path, body, headers), bodies))


def test_twenty_large_bodies_at_once(watched: Watched) -> None:
    assert at_once(watched.server, CLASSIFY, [bytes(56 * MIB)] * 20) <= {0, 400, 408, 429}
    assert watched.grown_mib < MOST_MIB


def test_compressed_bodies_are_counted_as_they_unpack(watched: Watched) -> None:
    body = gzip.compress(bytes(60 * MIB))
    assert len(body) < 100_000
    assert at_once(watched.server, CLASSIFY, [body] * 20, {"Content-Encoding": "gzip"}) <= {400, 429}
    assert watched.grown_mib < MOST_MIB


def test_forms_of_large_files(watched: Watched) -> None:
    file = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + bytes(56 * MIB)
        + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert at_once(watched.server, CLASSIFY, [file] * 20, headers) <= {0, 400, 408, 429}
    assert watched.grown_mib < MOST_MIB


@pytest.mark.parametrize("value", [b'"ab"', b"1e1", b"[1]", b"{}"])
def test_json_of_many_values(watched: Watched, value: bytes) -> None:
    body = b'{"inputs": [' + b",".join([value] * (4_100_000 // (len(value) + 1))) + b"]}"
    assert at_once(watched.server, INFER, [body] * 20) <= {400, 429}
    assert watched.grown_mib < MOST_MIB


@pytest.mark.parametrize("path", [CLASSIFY, PREDICT])
def test_images_in_json(watched: Watched, path: str) -> None:
    """A body is there as bytes and as text, its image as bytes and in a message: one after the other."""
    text = base64.b64encode(bytes(40 * MIB)).decode()
    body = json.dumps({"b64": text} if path == CLASSIFY else {"instances": [{"b64": text}]}).encode()
    assert at_once(watched.server, path, [body] * 20) <= {0, 400, 408, 429}
    assert watched.grown_mib < MOST_MIB


def test_bodies_that_never_complete(watched: Watched) -> None:
    """Each of 60 clients announces 60 MiB and sends as much as it may, without an end. Others are served meanwhile."""
    sockets = []
    for _ in range(60):
        client = socket.create_connection(("127.0.0.1", watched.server.http_port))
        client.sendall(f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nContent-Length: {60 * MIB}\r\n\r\n".encode())
        client.setblocking(False)
        sockets.append(client)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        for client in sockets:
            with contextlib.suppress(OSError):
                client.send(bytes(2**16))
    # They stay connected and send no more. Memory is needed, so they lose their connections.
    wait_until(lambda: ask(watched.server, CLASSIFY, picture("left")) == 200)
    for client in sockets:
        client.close()
    assert watched.grown_mib < MOST_MIB


def test_requests_sent_in_advance(watched: Watched) -> None:
    sockets = []
    for _ in range(100):
        client = socket.create_connection(("127.0.0.1", watched.server.http_port))
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.send(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000)
        sockets.append(client)
    assert ask(watched.server, CLASSIFY, picture("left")) == 200
    for client in sockets:
        client.close()
    assert watched.grown_mib < MOST_MIB


def test_responses_that_are_never_read(tmp_path: Path) -> None:
    """A model of many classes: a small request, a response of 32 MB, and 60 clients that read nothing."""
    write_wide(tmp_path / "models", 1_000_000)
    body = bytes(512)
    head = b"POST /v2/models/fixed/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
    with serving(tmp_path / "log", tmp_path / "models", "--max-pending-mib", str(LIMIT_MIB)) as server:
        headers = {"Inference-Header-Content-Length": "0"}
        assert ask(server, "/v2/models/fixed/infer", body, headers) == 200
        watched = Watched(server)
        sockets = []
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", server.http_port))
            client.sendall(head + b"Content-Length: 512\r\n\r\n" + body)
            sockets.append(client)
        # Clients that read get their responses all the same.
        wait_until(lambda: ask(server, "/v2/models/fixed/infer", body, headers) == 200)
        watched.close()
        for client in sockets:
            client.close()
        assert watched.grown_mib < MOST_MIB


def test_a_response_that_is_never_read_does_not_hold_up_the_end(tmp_path: Path) -> None:
    write_wide(tmp_path / "models", 1_000_000)
    flags = ("--drain-grace-s", "1")
    with serving(tmp_path / "log", tmp_path / "models", *flags) as server:
        head = "POST /v2/models/fixed/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 0\r\n"
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=HANG_S) as client:
            client.sendall(f"{head}Content-Length: 512\r\n\r\n".encode() + bytes(512))
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            assert server.terminate() == 0
    assert "ERROR" not in server.log
    assert "Traceback" not in server.log
