# ruff: noqa: INP001, S603, S607, T201 - a script of the image's build.
"""Loads ONNX Runtime's CUDA provider and each of NVIDIA's libraries, which takes no GPU.

The image gpu leaves out parts of CUDA and cuDNN. If something that stays needs one of them, this fails and names it.
"""

import contextlib
import ctypes
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

_PROVIDERS = Path(onnxruntime.__file__).parent / "capi"
_CUDA = _PROVIDERS / "libonnxruntime_providers_cuda.so"
_NVIDIA = _PROVIDERS.parents[1] / "nvidia"
# Functions of the driver: cuInit, but not cudaMalloc or cublasCreate.
_DRIVER = re.compile(rb" (cu[A-Z]\w*)$", re.MULTILINE)


def load() -> int:
    """Returns how many of NVIDIA's libraries were loaded. Raises `OSError` if one was not."""
    libraries = sorted(_NVIDIA.rglob("*.so*"))
    _load_driver([_CUDA, *libraries])
    # As the server does it. It would only print which libraries it misses.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    ctypes.CDLL(str(_PROVIDERS / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
    for library in (_CUDA, *libraries):
        try:
            ctypes.CDLL(str(library), os.RTLD_NOW)
        except OSError as error:
            raise OSError(f"{library.name} needs {error}") from error
    return len(libraries)


def _load_driver(libraries: list[Path]) -> None:
    """Loads a library with the names that others want of the driver, which is part of no image."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", *libraries], check=False, capture_output=True)
    if listed.returncode:
        raise OSError(listed.stderr.decode().strip())
    names = sorted({name.decode() for name in _DRIVER.findall(listed.stdout)})
    with tempfile.TemporaryDirectory() as folder:
        source = "".join(f".globl {name}\n{name}:\n" for name in names)
        subprocess.run(["as", "-o", "driver.o"], input=source.encode(), check=True, cwd=folder)
        link = ["ld", "-shared", "-soname", "libcuda.so.1", "-o", "driver.so", "driver.o"]
        subprocess.run(link, check=True, cwd=folder)
        ctypes.CDLL(f"{folder}/driver.so")


def main() -> int:
    """Prints how many libraries were loaded. Returns 1 if one was not."""
    try:
        print(f"the CUDA provider and {load()} libraries of NVIDIA load")
    except OSError as error:
        print(f"the slimmed CUDA is incomplete: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
