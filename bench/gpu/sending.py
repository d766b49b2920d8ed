"""Puts load on a server with the engine of `cnnserve bench`: over each transport, in closed and in open loops."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np
from harness import INFER, Server
from setting import SHARED_MEMORY

from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.tools.bench import messages
from cnnserve.tools.bench.cells import Load
from cnnserve.tools.bench.engine import Engine, Plan
from cnnserve.tools.bench.messages import Messages
from cnnserve.tools.bench.target import Target
from cnnserve.tools.load.generator import UNANSWERED
from cnnserve.wire import open_inference_pb2 as pb
from cnnserve_client.client import Client
from cnnserve_client.limits import newest, ready_versions
from cnnserve_client.results import VersionInfo

_TIMEOUT_S = 30.0
_TENSORS = 4
_FOLDER = Path("/dev/shm")


def send(
    server: Server, model: str, load: Load, *, transport: str, images: int, seconds: float, processes: int = 0
) -> dict[str, Any]:
    """Returns what a load gave, as `cnnserve bench --json` does. Raises `RuntimeError` if no request succeeded.

    If no request ends within `seconds`, it takes 4 and then 16 times as long.
    `processes`: load processes; 0: one for four cores. If they are too few, they are not doubled, because that would
    take the time of another measurement, but `client_limit` says so.
    """
    http = "127.0.0.1:" + server.wait_for(r"HTTP port (\d+)")[1][1]
    target = Target(server.address, http, model, "", "", tls=False, files=(None, None, None), pids=(server.pid,))
    with Client(server.address, timeout_s=_TIMEOUT_S, retries=0) as client:
        info = newest(ready_versions(client.get_model(model), ""))
        client.infer(messages.sample(info, images), model=model)
    count = processes or max(1, machine.cores() // 4)
    with _messages(server, info, model, transport, images) as sent:
        for longer in (1, 4, 16):
            plan = Plan(longer * seconds, count, connections=1, seed=0, timeout_s=_TIMEOUT_S)
            with Engine(target, sent, plan, machine.cores()) as engine:
                cell = engine.run(load)
            if cell.requests:
                return cell.as_json()
            if {*cell.failed} - {UNANSWERED}:
                break
    raise RuntimeError(f"no request succeeded: {dict(cell.failed) or 'none was answered in time'}")


@contextlib.contextmanager
def _messages(server: Server, info: VersionInfo, model: str, transport: str, images: int) -> Iterator[Messages]:
    if transport != "shared memory":
        yield messages.tensors(info, model, "", images, transport)
        return
    with _region(server, info, images) as (name, size):
        yield Messages(
            bodies=tuple(_reference(info, model, images, (name, number * size, size)) for number in range(_TENSORS)),
            images=images,
            about=f"references to tensors of {size} bytes in shared memory",
            method=INFER,
        )


@contextlib.contextmanager
def _region(server: Server, info: VersionInfo, images: int) -> Iterator[tuple[str, int]]:
    """Yields the name of a registered region with `_TENSORS` tensors, and the size of each in bytes."""
    assert info.input is not None
    shape, dtype = (_TENSORS, images, *info.input.shape[1:]), NUMPY_TYPES[info.input.datatype]
    data = np.random.default_rng(0).integers(0, 256, shape).astype(dtype).tobytes()
    file = _FOLDER / f"{SHARED_MEMORY}-{os.getpid()}"
    region = pb.SystemSharedMemoryRegisterRequest(name=file.name, key=f"/{file.name}", byte_size=len(data))
    service = "inference.GRPCInferenceService/SystemSharedMemory"
    file.write_bytes(data)
    try:
        server.call(f"{service}Register", region, pb.SystemSharedMemoryRegisterResponse)
        yield file.name, len(data) // _TENSORS
        gone = pb.SystemSharedMemoryUnregisterRequest(name=file.name)
        server.call(f"{service}Unregister", gone, pb.SystemSharedMemoryUnregisterResponse)
    finally:
        file.unlink()


def _reference(info: VersionInfo, model: str, images: int, place: tuple[str, int, int]) -> bytes:
    """Returns a request whose tensor lies in shared memory: `place` is region, offset and size in bytes."""
    region, offset, size = place
    assert info.input is not None
    request = pb.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=info.input.name, datatype=info.input.datatype)
    tensor.shape.extend((images, *info.input.shape[1:]))
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_offset"].int64_param = offset
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    return request.SerializeToString()
