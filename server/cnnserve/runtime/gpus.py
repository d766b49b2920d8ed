"""Reads memory and use of NVIDIA's GPUs through NVML. Only this module imports pynvml (package nvidia-ml-py).

Without pynvml, a driver or a GPU there is nothing to read.
"""

import functools
import importlib
import logging
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """One GPU now. `utilization`: share of the last second in which it worked, 0 to 1; `power_watts`: its power.

    A value is None if the GPU does not tell it.
    """

    uuid: str
    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None
    power_watts: float | None


def readings() -> list[Gpu]:
    """Returns all GPUs; none if they cannot be read. NVML may need some ms, so call it on a thread."""
    nvml = _nvml()
    if nvml is None:
        return []
    try:
        return [_reading(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        _log.debug("the GPUs cannot be read: %s", error)
        return []


@functools.cache
def _nvml() -> Any:
    """Returns pynvml, ready for use; None if it is not installed or finds no driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _log.debug("NVML cannot be used: %s", error)
        return None
    return nvml


def _reading(nvml: Any, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        utilization=_optional(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        power_watts=_optional(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
    )


def _optional(nvml: Any, read: Any) -> float | None:
    # A part of a GPU (MIG) has no use and no power of its own.
    try:
        return float(read())
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    # Old versions of pynvml return bytes.
    return value.decode() if isinstance(value, bytes) else value
