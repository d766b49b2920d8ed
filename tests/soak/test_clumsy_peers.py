"""Honest clients beside slow, clumsy and hostile ones get all their answers, and the right ones.

Every peer of `clumsy` attacks at least once, and again for CNNSERVE_SOAK_MINUTES.
"""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest

from bursts import INFER, STREAM, digits
from cnnserve.wire import open_inference_pb2 as pb
from soak.clumsy import PEERS, Peer
from support import HANG_S, REPOSITORY, RunningServer, serving, wait_until
from watching import Watched, resident_mib

MINUTES = float(os.environ.get("CNNSERVE_SOAK_MINUTES", "0"))
FLAGS = ("--max-pending-mib", "128", "--grpc-transport", "core")
# Above the idle size. Each attack alone stays below 384 MiB; this is for all of them at once, on a busy machine.
MOST_MIB = 768
# What may stay of them: pools and caches, and what grpc's core keeps.
LEFT_MIB = 128
SEEDS = range(8)
# As a client that keeps to the server's times for retries.
_RETRY_S = 0.1

Ask = Callable[[int], np.ndarray | None]


class Honest:
    """Clients that send the same requests over and over, and compare each answer with the one of a quiet server.

    An answer that the server has no room for is asked for again; nothing else may fail.
    """

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.answers: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        with self._unary() as ask:
            self._expected = {seed: ask(seed) for seed in SEEDS}
        ways = {"unary": self._unary, "stream": self._stream, "http": self._http}
        self._threads = [threading.Thread(target=self._work, args=way) for way in ways.items()]

    def __enter__(self) -> "Honest":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HANG_S)

    def _work(self, name: str, way: Callable[[], contextlib.AbstractContextManager[Ask]]) -> None:
        try:
            with way() as ask:
                number = 0
                while not self._stop.is_set():
                    seed = number % len(SEEDS)
                    found = ask(seed)
                    if found is None:
                        self.refusals[name] += 1
                        time.sleep(_RETRY_S)
                        continue
                    assert np.allclose(found, self._expected[seed], atol=1e-4), f"seed {seed}: {found}"
                    self.answers[name] += 1
                    number += 1
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}")

    @contextlib.contextmanager
    def _unary(self) -> Iterator[Ask]:
        with grpc.insecure_channel(self.server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.unary_unary(INFER, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)

            def ask(seed: int) -> np.ndarray | None:
                try:
                    answer = call(digits(seed), timeout=HANG_S)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                        return None
                    raise
                assert answer.id == str(seed)
                return np.frombuffer(answer.raw_output_contents[0], np.float32)

            yield ask

    @contextlib.contextmanager
    def _stream(self) -> Iterator[Ask]:
        with grpc.insecure_channel(self.server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            call = channel.stream_stream(
                STREAM, pb.ModelInferRequest.SerializeToString, pb.ModelStreamInferResponse.FromString
            )

            def ask(seed: int) -> np.ndarray | None:
                try:
                    (answer,) = call(iter([digits(seed)]), timeout=HANG_S)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                        return None
                    raise
                if "max_pending_mib" in answer.error_message:
                    return None
                assert not answer.error_message, answer.error_message
                assert answer.infer_response.id == str(seed)
                return np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)

            yield ask

    @contextlib.contextmanager
    def _http(self) -> Iterator[Ask]:
        url = f"http://127.0.0.1:{self.server.http_port}/v2/models/lenet5/infer"
        with httpx.Client(timeout=HANG_S) as client:

            def ask(seed: int) -> np.ndarray | None:
                tensor = [int(value) for value in digits(seed).raw_input_contents[0]]
                body = {"id": str(seed), "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28, 1]}]}
                body["inputs"][0]["data"] = tensor
                try:
                    answer = client.post(url, json=body)
                except httpx.TransportError:
                    # While connections are used up, a server may close one that waits, or refuse a new one.
                    return None
                if answer.status_code in (429, 503):
                    return None
                assert answer.status_code == 200, answer.text
                assert answer.json()["id"] == str(seed)
                return np.array(answer.json()["outputs"][0]["data"], np.float32)

            yield ask


def attack(server: RunningServer, peer: Peer, end: float, failures: list[str]) -> None:
    """Lets a peer attack once, and then until `end`."""
    while True:
        try:
            with contextlib.suppress(OSError):
                peer(server)
        except Exception as error:
            failures.append(f"{peer.__name__}: {type(error).__name__}: {error}")
            return
        if time.monotonic() >= end:
            return


@pytest.mark.timeout(1200 + MINUTES * 60)
def test_honest_clients_get_their_answers(tmp_path: Path) -> None:
    with serving(tmp_path / "log", REPOSITORY, *FLAGS) as server:
        with Honest(server) as honest:
            wait_until(lambda: len(honest.answers) == 3)
            watched = Watched(server)
            failures: list[str] = []
            end = time.monotonic() + MINUTES * 60
            attacks = [threading.Thread(target=attack, args=(server, peer, end, failures)) for peer in PEERS]
            for thread in attacks:
                thread.start()
            for thread in attacks:
                thread.join()
            watched.close()
            # Everybody is served again, at once.
            before = honest.answers.copy()
            wait_until(lambda: all(honest.answers[name] > before[name] + 10 for name in before))
            wait_until(
                lambda: resident_mib(server.process.pid) - watched.idle_mib < LEFT_MIB,
                lambda: f"memory that goes back, {resident_mib(server.process.pid) - watched.idle_mib:.0f} MiB stay",
            )
        assert not honest.failures
        assert not failures
        assert watched.grown_mib < MOST_MIB
        # What broke inside would be logged with its traceback.
        assert "Traceback" not in server.log, server.log
        assert server.terminate() == 0
