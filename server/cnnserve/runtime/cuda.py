"""Calls NVIDIA's libraries through ctypes, for the few things that ONNX Runtime does not report or do."""

import ctypes
import re
import weakref
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

_NOT_FOUND = re.compile(r"^(\S+?\.so[.\d]*): cannot open shared object file")


def missing_library(library: Path) -> str | None:
    """Returns the shared library that `library` needs and that is missing, or None if none is missing."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        match = _NOT_FOUND.match(str(error))
        return match[1] if match else None
    return None


def device_name(device_id: int) -> str:
    """Returns the name of a GPU, for example "NVIDIA H200". Raises `OSError` if driver or device is missing."""
    driver = ctypes.CDLL("libcuda.so.1")
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), device_id):
        raise OSError(f"there is no GPU {device_id}")
    if driver.cuDeviceGetName(name, len(name), device):
        raise OSError(f"GPU {device_id} has no name")
    return name.value.decode()


def driver_version() -> str:
    """Returns the newest version of CUDA that the driver supports, for example "13.0". Raises `OSError` without one."""
    number = ctypes.c_int()
    if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)):
        raise OSError("the NVIDIA driver does not tell its version")
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def pin(array: NDArray[Any], cuda_version: str) -> None:
    """Locks the memory of an array into RAM until it is freed, so that the GPU reads it directly. Raises `OSError`."""
    runtime = ctypes.CDLL(f"libcudart.so.{cuda_version.partition('.')[0]}")
    address = ctypes.c_void_p(array.ctypes.data)
    failure = runtime.cudaHostRegister(address, ctypes.c_size_t(array.nbytes), ctypes.c_uint(0))
    if failure:
        raise OSError(f"cudaHostRegister of {array.nbytes} bytes failed with {failure}")
    # `finalize` calls back before the memory of the array is freed.
    weakref.finalize(array, runtime.cudaHostUnregister, address)
