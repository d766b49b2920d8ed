# ruff: noqa: INP001, T201 - a script of the image's build.
"""Loads ONNX Runtime's CUDA provider and each of NVIDIA's libraries, which takes neither a GPU nor a driver.

The image gpu leaves out parts of CUDA and cuDNN. If something that stays needs one of them, this fails and names it.
"""

import contextlib
import ctypes
import io
import os
import sys
from pathlib import Path

import onnxruntime

_PROVIDERS = Path(onnxruntime.__file__).parent / "capi"
_NVIDIA = _PROVIDERS.parents[1] / "nvidia"


def main() -> int:
    """Prints how many libraries were loaded. Returns 1 if one was not."""
    # As the server does it. It would only print which libraries it misses.
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
    try:
        ctypes.CDLL(str(_PROVIDERS / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(_PROVIDERS / "libonnxruntime_providers_cuda.so"), os.RTLD_NOW)
        libraries = sorted(_NVIDIA.rglob("*.so*"))
        for library in libraries:
            ctypes.CDLL(str(library))
    except OSError as error:
        print(f"the slimmed CUDA is incomplete: {error}", file=sys.stderr)
        return 1
    print(f"the CUDA provider and {len(libraries)} libraries of NVIDIA load")
    return 0


if __name__ == "__main__":
    sys.exit(main())
