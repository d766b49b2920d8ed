"""A server restarts again and again: unary clients lose nothing, and no restart takes longer than its grace allows."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cnnserve_client import AsyncClient, Client, CnnserveError
from support import picture, serving, spawn, write_version

pytestmark = pytest.mark.skipif(not os.environ.get("CNNSERVE_SOAK_MINUTES"), reason="set CNNSERVE_SOAK_MINUTES")

# Seconds without a server.
PAUSES = (1.0, 1.4, 1.8, 2.2, 2.5)
# The default grace is 25 s.
LONGEST_STOP_S = 28.0
SIDE, STEPS, REQUESTS = 1500, 400, 128


class Callers:
    """Clients of both kinds that classify without a pause, and what they got."""

    def __init__(self, address: str) -> None:
        self.labels: list[str] = []
        self.failures: list[str] = []
        self._address = address
        self._stop = threading.Event()

    def one(self) -> None:
        with Client(self._address) as client:
            while not self._stop.is_set():
                self._record(lambda: client.classify(picture("left"), model="tiny").results[0].classes[0].label)

    def several(self) -> None:
        async def call() -> None:
            async with AsyncClient(self._address) as client:
                while not self._stop.is_set():
                    result = await client.classify(picture("left"), model="tiny")
                    self.labels.append(result.results[0].classes[0].label)

        try:
            asyncio.run(call())
        except CnnserveError as error:
            self.failures.append(repr(error))

    def stop(self) -> None:
        self._stop.set()

    def _record(self, call: Callable[[], str]) -> None:
        try:
            self.labels.append(call())
        except CnnserveError as error:
            self.failures.append(repr(error))


def test_five_restarts_cost_unary_clients_nothing(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--repository", tmp_path / "models", "--grpc-port", str(port))
    server = spawn(tmp_path / "log", *flags)
    callers = Callers(f"127.0.0.1:{port}")
    threads = [threading.Thread(target=work) for work in (callers.one, callers.several)]
    for thread in threads:
        thread.start()
    for number, pause_s in enumerate(PAUSES):
        server.wait_for("ready; models:")
        time.sleep(1)
        assert server.terminate() == 0
        time.sleep(pause_s)
        server = spawn(tmp_path / f"log{number}", *flags)
    server.wait_for("ready; models:")
    time.sleep(3)
    callers.stop()
    for thread in threads:
        thread.join()
    assert server.terminate() == 0
    assert callers.failures == []
    assert set(callers.labels) == {"left"}


def slow_onnx() -> bytes:
    """Returns a model whose run takes a few tenths of a second."""
    weights = numpy_helper.from_array(np.full((SIDE, SIDE), 1 / SIDE, np.float32), "w")
    nodes = [helper.make_node("MatMul", [f"h{step}", "w"], [f"h{step + 1}"]) for step in range(STEPS)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIDE]) for name in ("h0", "y")]
    nodes.append(helper.make_node("Softmax", [f"h{STEPS}"], ["y"]))
    graph = helper.make_graph(nodes, "slow", ends[:1], ends[1:], [weights])
    data: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    onnx.checker.check_model(data)
    return data


def test_a_full_queue_ends_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "slow" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(slow_onnx())
    (folder.parent / "config.pbtxt").write_text("max_batch_size: 1")
    answered, refused = [], []

    async def call(client: AsyncClient) -> None:
        try:
            await client.infer({"h0": np.ones((1, SIDE), np.float32)}, model="slow")
            answered.append(client)
        except CnnserveError as error:
            refused.append(error.code)

    async def calls(address: str) -> None:
        async with AsyncClient(address, retries=0, timeout_s=100) as client:
            await asyncio.gather(*(call(client) for _ in range(REQUESTS)))

    with serving(tmp_path / "log", tmp_path / "models") as server:
        thread = threading.Thread(target=asyncio.run, args=(calls(server.address),))
        thread.start()
        time.sleep(2)
        began = time.monotonic()
        assert server.terminate() == 0
        took = time.monotonic() - began
        thread.join()
    assert took < LONGEST_STOP_S
    # Each is answered, or its client is told to go elsewhere.
    assert set(refused) <= {"UNAVAILABLE"}
    assert len(answered) + len(refused) == REQUESTS
