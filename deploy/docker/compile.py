# ruff: noqa: INP001 - a script of the image's build.
"""Writes the bytecode of every module that the server and the client import, because the server cannot write files.

Bytecode of the other modules would only make the image larger. `make image-test` sees whether a served request imports
a module without bytecode.
"""

import contextlib
import importlib.util
import pkgutil
import py_compile
import sys
from pathlib import Path

# What is imported by name, or only for certain images and settings.
_BY_NAME = (
    "encodings.idna",
    "encodings.utf_8_sig",
    "grpc._channel",
    "PIL.BmpImagePlugin",
    "PIL.GifImagePlugin",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin",
    "PIL.WebPImagePlugin",
    "stringprep",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.supervisors.watchfilesreload",
)
# Commands that people run by hand, and that may take their time.
_TOOLS = ("cnnserve.doctor", "cnnserve.tools")


def _import_all() -> None:
    for package in ("cnnserve", "cnnserve_client"):
        found = importlib.import_module(package)
        for module in pkgutil.walk_packages(found.__path__, f"{package}.", onerror=lambda _: None):
            # Not `__main__`, which would run; some modules need packages that this image does not have.
            if not module.name.endswith("__main__") and not module.name.startswith(_TOOLS):
                with contextlib.suppress(ImportError):
                    importlib.import_module(module.name)


_import_all()
for package in ("numpy.random", "uvloop"):
    importlib.import_module(package)
named = [spec.origin for name in _BY_NAME if (spec := importlib.util.find_spec(name))]
for file in {*named, *(getattr(module, "__file__", None) for module in sys.modules.values())}:
    # What a lower layer of the image has, another layer would have twice.
    if file and file.endswith(".py") and not Path(importlib.util.cache_from_source(file)).exists():
        py_compile.compile(file, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
