"""Open and closed loops on real servers, also such that stall or go away."""

import os
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import Counter
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trustme

from cnnserve.tools.load.connecting import Wire, tls_context
from cnnserve.tools.load.generator import LOST, UNANSWERED, Generator, Open, Window
from cnnserve.tools.load.http1 import HttpConnection
from cnnserve.tools.load.http2 import Connection
from cnnserve.tools.load.summary import summary
from oip import SERVICE, tensor
from support import RunningServer, serving, write_version

INFER = f"{SERVICE}/ModelInfer"


def grpc(address: str, in_flight: int, *, model: str = "tiny") -> Open:
    body = tensor(model=model).SerializeToString()
    return lambda: Connection(Wire(address), address, INFER, [body], in_flight)


def statuses(ended: list[tuple[float, float, str]]) -> Counter[str]:
    return Counter(status for _, _, status in ended)


def test_every_arrival_of_an_open_loop_has_its_outcome(tiny_server: RunningServer) -> None:
    times = [index * 0.004 for index in range(200)]
    generator = Generator([grpc(tiny_server.address, 50)], precise=True)
    window = Window(time.perf_counter(), 0.2, 0.4)
    measured = generator.open(iter(times), window)
    due = sorted(entry[1] for entry in measured.ended)
    expected = [window.begin + at for at in times if window.start < window.begin + at <= window.end]
    assert due == expected
    assert statuses(measured.ended) == {"OK": len(expected)}
    assert len(measured.lags) == len(expected)
    assert all(at >= due for at, due, _ in measured.ended)


def test_failed_requests_have_their_status(tiny_server: RunningServer) -> None:
    measured = Generator([grpc(tiny_server.address, 3, model="nobody")]).closed(Window(time.perf_counter(), 0.1, 0.3))
    assert set(statuses(measured.ended)) == {"NOT_FOUND"}


def test_the_servers_cpu_time_is_that_of_all_its_processes_that_still_run(tiny_server: RunningServer) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    pids = (ended.pid, os.getpid(), tiny_server.process.pid)
    measured = Generator([grpc(tiny_server.address, 4)]).closed(Window(time.perf_counter(), 0.1, 0.4, pids))
    alone = Generator([grpc(tiny_server.address, 4)]).closed(Window(time.perf_counter(), 0.1, 0.2, (ended.pid,)))
    # The clocks of the processes are read one after the other, in steps of 10 ms.
    assert measured.server_cpu_s > measured.own_cpu_s - 0.02
    assert measured.own_cpu_s > 0
    assert alone.server_cpu_s == 0


class Stalling:
    """A server over HTTP that answers the first request only after the others have been due for long.

    `answers`: how many requests it answers; None: all. `pause_s`: how long each of them takes.
    """

    def __init__(self, stall_s: float, answers: int | None = None, pause_s: float = 0.0) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self._stall_s = stall_s
        self._answers = answers
        self._pause_s = pause_s
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            for number in count():
                if not connection.recv(65536):
                    return
                if number == 0:
                    time.sleep(self._stall_s)
                time.sleep(self._pause_s)
                if number == self._answers:
                    continue
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    def close(self) -> None:
        self._thread.join()
        self.listener.close()


def test_a_stall_counts_for_all_requests_that_were_due_meanwhile() -> None:
    server = Stalling(0.5)
    try:
        generator = Generator([partial(http, server.address)], precise=True)
        measured = generator.open((0.01 * index for index in range(1, 41)), Window(time.perf_counter(), 0.0, 0.4))
        late = [at - due for at, due, _ in measured.ended]
        # The request that was due last before the end waited for 0.1 s at least, the first for 0.5 s.
        assert len(late) >= 39
        assert max(late) >= 0.5
        assert min(late) >= 0.1 - 0.01
    finally:
        server.close()


def http(address: str) -> HttpConnection:
    return HttpConnection(Wire(address), address, "/", [b"x"], [])


def test_the_rate_of_an_open_loop_is_what_the_server_did_meanwhile() -> None:
    """A server that is asked for more than it can do is no slower because of what waits from the warm-up."""
    server = Stalling(0.0, pause_s=0.01)
    try:
        generator = Generator([partial(http, server.address)], precise=True)
        measured = generator.open((0.004 * index for index in range(1, 200)), Window(time.perf_counter(), 0.4, 0.4))
    finally:
        server.close()
    found = summary(measured, 0.4)
    assert found["requests"] >= 99
    assert 40 < found["rate"] <= 100


def test_a_stall_at_the_end_of_a_closed_loop_counts() -> None:
    """Otherwise the rate would be that of the time before the stall."""
    server = Stalling(0.0, answers=3)
    try:
        measured = Generator([partial(http, server.address)]).closed(Window(time.perf_counter(), 0.0, 1.3))
    finally:
        server.close()
    assert statuses(measured.ended) == {"OK": 3, UNANSWERED: 1}
    assert summary(measured, 1.3)["rate"] == pytest.approx(3 / 1.3, rel=0.1)


def test_requests_that_the_server_does_not_let_be_in_flight_are_counted() -> None:
    settings = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0]) + struct.pack("!HI", 3, 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        generator = Generator([grpc(address, 5)])
        connection, _ = listener.accept()
        with connection:
            connection.sendall(settings)
            assert generator.closed(Window(time.perf_counter(), 0.0, 0.1)).withheld == 3


def test_responses_that_never_come_are_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        generator = Generator([partial(http, address)], precise=True)
        window = Window(time.perf_counter(), 0.0, 0.1)
        measured = generator.open(iter([0.01, 0.02, 0.03]), window, patience_s=0.1)
    assert statuses(measured.ended) == {UNANSWERED: 3}


def test_a_server_that_goes_away_and_comes_back(tiny_repository: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "log", tiny_repository) as first:
        generator = Generator([grpc(first.address, 2)])
        timer = threading.Timer(0.5, first.process.kill)
        timer.start()
        measured = generator.closed(Window(time.perf_counter(), 0.0, 1.0))
        timer.join()
    found = statuses(measured.ended)
    assert found["OK"] > 0
    assert found[LOST] == 2


def test_tls_speaks_http2(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    roots = tmp_path / "roots.pem"
    authority.cert_pem.write_to_path(roots)
    (tmp_path / "certificate.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    write_version(tmp_path / "models" / "tiny" / "1")
    flags = ["--tls-certificate", tmp_path / "certificate.pem", "--tls-key", tmp_path / "key.pem"]
    with serving(tmp_path / "log", tmp_path / "models", *flags) as server:
        context = tls_context(["h2"], roots, None, None)
        body = tensor().SerializeToString()
        opener = partial(tls_connection, server.address, context, body)
        measured = Generator([opener]).closed(Window(time.perf_counter(), 0.1, 0.3))
    assert set(statuses(measured.ended)) == {"OK"}


def tls_connection(address: str, context: ssl.SSLContext, body: bytes) -> Connection:
    return Connection(Wire(address, context), address, INFER, [body], 4)
