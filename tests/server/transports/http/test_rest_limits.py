"""Limits of bodies, clients that disconnect, and the end of the HTTP port, with real servers and plain sockets."""

import contextlib
import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from support import HANG_S, RunningServer, cpu_seconds, picture, png, serving, wait_until, write_version

LEFT = picture("left")
CLASSIFY = "/v1/models/tiny:classify"


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[RunningServer]:
    """A server that reads bodies of at most 1 MiB, with a memory budget of 16 MiB."""
    write_version(tmp_path / "repository" / "tiny" / "1")
    flags = ["--max-message-mib", "1", "--max-pending-mib", "16"]
    with serving(tmp_path / "log", tmp_path / "repository", *flags) as server:
        yield server


@contextlib.contextmanager
def connected(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=HANG_S) as connection:
        yield connection


def head(length: int | str, path: str = CLASSIFY) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def ask(server: RunningServer, body: bytes = LEFT, timeout: float = HANG_S) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("POST", CLASSIFY, body)
        response = connection.getresponse()
        response.read()
        return response.status


def test_a_body_too_large_is_refused_before_it_is_read(small_server: RunningServer) -> None:
    with connected(small_server) as connection:
        connection.sendall(head(2**20 + 1))
        assert b"413" in connection.recv(1000)
    with connected(small_server) as connection:
        connection.sendall(head(2**40))
        answer = b"".join(iter(lambda: connection.recv(1000), b""))
        assert b"413" in answer
        assert b"the limit is 1048576 bytes; start the server with a larger --max-message-mib" in answer
        assert b"connection: close" in answer.lower()
    assert ask(small_server, bytes(2**20 + 1)) == 413
    assert ask(small_server, bytes(2**20)) == 400
    assert ask(small_server) == 200


def test_a_chunked_body_too_large_is_refused(small_server: RunningServer) -> None:
    with connected(small_server) as connection:
        connection.sendall(f"POST {CLASSIFY} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(b"10000\r\n" + bytes(2**16) + b"\r\n")
        assert b"413" in connection.recv(1000)


def test_bodies_on_their_way_count_in_the_memory_budget(small_server: RunningServer) -> None:
    with contextlib.ExitStack() as open_ones:
        connections = [open_ones.enter_context(connected(small_server)) for _ in range(18)]
        for connection in connections:
            with contextlib.suppress(ConnectionError):
                connection.sendall(head(2**20) + bytes(2**20 - 1))
        answered, _, _ = select.select(connections, [], [], HANG_S)
        assert b"429" in answered[0].recv(1000)
    # The clients have disconnected, so their memory is released.
    wait_until(lambda: ask(small_server) == 200)
    assert "Traceback" not in small_server.log


def test_requests_of_disconnected_clients_leave_the_queue(tmp_path: Path) -> None:
    """Requests of clients that disconnect leave the queue. A client that stays gets its response; nothing is logged."""
    write_version(tmp_path / "repository" / "tiny" / "1")
    slow = png(np.zeros((6000, 6000), np.uint8))
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        began = cpu_seconds(server.process)
        assert ask(server, slow) == 200
        alone = cpu_seconds(server.process) - began
        with contextlib.ExitStack() as leaving:
            for _ in range(60):
                leaving.enter_context(connected(server)).sendall(head(len(slow)) + slow)
        # It is decoded after the others.
        assert ask(server, slow) == 200
        took = cpu_seconds(server.process) - began - alone
        # Decoding all of them would take sixty times as much.
        assert took < 20 * alone
        assert "Traceback" not in server.log


def test_a_timeout_ends_the_request(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    slow = png(np.random.default_rng(0).integers(0, 256, (4000, 4000), np.uint8))
    with serving(tmp_path / "log", tmp_path / "repository") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request("POST", CLASSIFY, slow, {"Grpc-Timeout": "10m"})
            response = connection.getresponse()
            assert response.status == 504
            # Before the images are decoded, or while they are.
            said = json.load(response)["error"]
            assert "Grpc-Timeout" in said or "the deadline cannot be met" in said


def test_stopping_under_load_loses_nothing(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    answered: list[int] = []
    refused: list[int] = []
    lost: list[Exception] = []

    with serving(tmp_path / "log", tmp_path / "repository") as server:

        def client() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
            while True:
                try:
                    connection.request("POST", CLASSIFY, LEFT)
                    response = connection.getresponse()
                    response.read()
                except ConnectionRefusedError:
                    # The port is closed: the request was never sent.
                    return
                except (OSError, http.client.HTTPException) as error:
                    lost.append(error)
                    return
                (answered if response.status == 200 else refused).append(response.status)
                if response.status != 200:
                    assert response.getheader("connection") == "close"
                    return

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(client) for _ in range(8)]
            wait_until(lambda: len(answered) >= 100)
            assert server.terminate() == 0
            for done in clients:
                done.result(HANG_S)
    assert not lost
    assert set(refused) <= {503}
    assert "Traceback" not in server.log


def test_requests_in_flight_are_answered_when_the_server_stops(tmp_path: Path) -> None:
    write_version(tmp_path / "repository" / "tiny" / "1")
    with serving(tmp_path / "log", tmp_path / "repository") as server, connected(server) as connection:
        connection.sendall(head(len(LEFT)) + LEFT[:-1])
        assert ask(server) == 200
        ended = threading.Thread(target=server.terminate)
        ended.start()
        server.wait_for("draining")
        assert ask(server) == 503
        probe = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=HANG_S)
        with contextlib.closing(probe):
            probe.request("GET", "/v2/health/ready")
            assert probe.getresponse().status == 503
        connection.sendall(LEFT[-1:])
        answer = b"".join(iter(lambda: connection.recv(2000), b""))
        assert b"200 OK" in answer
        assert b'"label":"left"' in answer
        ended.join(HANG_S)
        assert server.process.returncode == 0
