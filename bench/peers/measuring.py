"""Measures one server in one round: start, memory, and each load."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import machine
from harness import Worker

from cnnserve.tools.bench.cells import Cell, Load
from cnnserve.tools.bench.engine import Engine, LoadFailed, Plan
from cnnserve.tools.bench.target import Target
from peers import environments, wires
from peers.catalogue import Peer
from peers.inputs import Inputs
from peers.processes import NotRun, Started, free_port, is_loopback_only, started
from peers.wires import BadResponse, Way

_START_S = 90.0
_POLL_S = 0.02
_SERVERS = Path(__file__).parent / "servers"
_BATCHES = (1, 4, 16)


@dataclass(frozen=True)
class Loads:
    """The closed loops of every server, and the threads of a run."""

    in_flight: Sequence[int]
    seconds: float
    threads: int


Result = dict[str, Any]


def measure_plain(inputs: Inputs, loads: Loads) -> Result:
    """Returns images/s of plain ONNX Runtime: for each load, those of its best batch.

    For images, the time to decode them with all cores is added.
    """
    began = time.perf_counter()
    with Worker("raw.py", inputs.folder / "model.onnx", "--threads", str(loads.threads)) as worker:
        worker.ask(batch=1, seconds=0.001)
        start_s = time.perf_counter() - began
        most = max(loads.in_flight)
        batches = {size: worker.ask(batch=size, seconds=loads.seconds) for size in _BATCHES if size <= most}
        memory_mib = machine.memory_mib(worker.pid)
    cells = {}
    for count in loads.in_flight:
        size, best = max(
            ((size, cell) for size, cell in batches.items() if size <= count), key=lambda pair: pair[1]["rate"]
        )
        cells[f"tensor run {count}"] = _plain_cell(best["rate"], best["cpu_us"] / 1e3, size, best)
        if inputs.images:
            rate = 1 / (1 / best["rate"] + inputs.decode_ms / 1e3 / machine.cores())
            cells[f"image run {count}"] = _plain_cell(rate, best["cpu_us"] / 1e3 + inputs.decode_ms, size, {})
    return {"start_s": start_s, "memory_mib": memory_mib, "processes": 1, "cells": cells}


def _plain_cell(rate: float, cpu_ms: float, batch: int, times: dict[str, float]) -> Result:
    return {"images_per_s": rate, "cpu_ms": cpu_ms, "batch": batch} | {
        name: value for name, value in times.items() if name in ("p50_ms", "p99_ms")
    }


def measure_own(inputs: Inputs, loads: Loads, repository: Path) -> Result:
    """Returns the result of cnnserve with its default settings."""
    grpc, http = free_port(), free_port()
    command = [sys.executable, "-m", "cnnserve", "serve", "--model-repository", str(repository)]
    command += ["--host", "127.0.0.1", "--grpc-port", str(grpc), "--http-port", str(http)]
    command += ["--model-control-mode", "explicit", "--load-model", inputs.model]
    addresses = (f"127.0.0.1:{grpc}", f"127.0.0.1:{http}")
    return _measure(command, addresses, wires.cnnserve(inputs), inputs, loads)


def measure_peer(peer: Peer, inputs: Inputs, loads: Loads) -> Result:
    """Returns the result of a peer. Raises `NotRun`."""
    if reason := environments.missing(peer):
        raise NotRun(reason)
    if peer.loopback_only and not is_loopback_only():
        raise NotRun("it listens on every network interface; `make bench` runs it where there is only loopback")
    port = free_port()
    # Without PYTHONPATH, because it may lead to packages of another environment.
    command = ["env", "-u", "PYTHONPATH", str(environments.python(peer)), str(_SERVERS / peer.script)]
    command += [str(inputs.folder.resolve())]
    command += ["--port", str(port), "--threads", str(loads.threads)]
    address = f"127.0.0.1:{port}"
    addresses = (address, "") if peer.wire == "oip" else ("", address)
    return _measure(command, addresses, wires.WIRES[peer.wire](inputs), inputs, loads)


def measure_empty(inputs: Inputs, loads: Loads) -> Result:
    """Returns the result of the gRPC server that runs no model. Its responses have the size of LeNet-5's."""
    with harness.empty_server() as server:
        cells = {}
        for way in wires.empty(inputs):
            target = _target((server.address, ""), inputs.model, (server.pid,))
            cells |= _cells(target, way, loads)
        return {"memory_mib": machine.memory_mib(server.pid), "processes": 1, "cells": cells}


def _environment() -> dict[str, str]:
    """Returns the environment of a server: without settings of cnnserve."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CNNSERVE_")}


def _measure(
    command: Sequence[str],
    addresses: tuple[str, str],
    ways: Sequence[Way],
    inputs: Inputs,
    loads: Loads,
) -> Result:
    with started(command, _environment()) as server:
        target = _target(addresses, inputs.model)
        start_s = _until_right(server, target, ways[0], inputs)
        for way in ways:
            for number in range(len(way.bodies)):
                if wrong := _wrong(way, target, number, inputs):
                    raise NotRun(f"{way.name}: {wrong}")
        target = _target(addresses, inputs.model, server.pids)
        cells = {}
        for way in ways:
            cells |= _cells(target, way, loads)
        return {
            "start_s": start_s,
            "memory_mib": server.memory_mib(),
            "processes": len(server.pids),
            "cells": cells,
        }


def _target(addresses: tuple[str, str], model: str, pids: tuple[int, ...] = ()) -> Target:
    return Target(*addresses, model, "", "", tls=False, files=(None, None, None), pids=pids)


def _until_right(server: Started, target: Target, way: Way, inputs: Inputs) -> float:
    """Returns the seconds from the start of the process to the first right response. Raises `NotRun`."""
    while time.perf_counter() < server.began + _START_S:
        wrong = _wrong(way, target, 0, inputs)
        if not wrong:
            return time.perf_counter() - server.began
        if not server.is_alive:
            raise NotRun(f"it ended: {server.last_words()}")
        time.sleep(_POLL_S)
    raise NotRun(f"no right response within {_START_S:g} s: {wrong}; its log: {server.last_words()}")


def _wrong(way: Way, target: Target, number: int, inputs: Inputs) -> str:
    try:
        return inputs.wrong(way.kind, number, way.ask(target, number))
    except (OSError, BadResponse) as error:
        return str(error) or repr(error)


def _cells(target: Target, way: Way, loads: Loads) -> dict[str, Result]:
    """Returns what each load gave."""
    plan = Plan(loads.seconds, processes=0, connections=1, seed=0, timeout_s=30.0)
    with Engine(target, way.messages, plan, machine.cores()) as engine:
        found = {}
        for count in loads.in_flight:
            try:
                cell = engine.run(Load(concurrency=count))
            except LoadFailed as error:
                raise NotRun(f"{way.name}, {count} in flight: {error}") from error
            if not cell.requests:
                raise NotRun(f"{way.name}, {count} in flight: no request succeeded, {dict(cell.failed)}")
            found[f"{way.name} {count}"] = _as_json(cell)
    return found


def _as_json(cell: Cell) -> Result:
    return {
        "images_per_s": cell.images_per_s,
        "p50_ms": cell.p50_ms,
        "p99_ms": cell.p99_ms,
        "cpu_ms": cell.server_cpu_ms,
        "requests": cell.requests,
        "failed": sum(cell.failed.values()),
        "batch": cell.mean_batch,
        "client_limit": cell.client_limit,
    }
