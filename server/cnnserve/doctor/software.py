"""Checks the installed packages: what the server needs, and which ONNX Runtime lies here."""

import importlib.util
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

import cnnserve
from cnnserve.doctor.findings import Context, Finding, Status
from cnnserve.extras import install
from cnnserve.runtime import diagnosis

# The modules of the extra `server`, and the distributions that have them.
SERVER_MODULES = {
    "PIL": "pillow",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "httptools": "httptools",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "uvloop": "uvloop",
}
_RUNTIME = "onnxruntime"
_PACKAGE = "onnxruntime/__init__.py"
_NAMED = 3


@dataclass(frozen=True)
class Distribution:
    """An installed distribution that has the package onnxruntime. `altered`: its files that are not as it has them."""

    name: str
    version: str
    altered: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def check(context: Context) -> Iterator[Finding]:
    """Yields what is installed."""
    versions = {"cnnserve": cnnserve.__version__, "python": platform.python_version()}
    system = f"{platform.system()} {platform.machine()}"
    text = f"{versions['cnnserve']}, Python {versions['python']}, {system}"
    yield Finding("cnnserve", Status.OK, text, data={**versions, "system": system})
    extra = "gpu" if context.settings.get("device") == "cuda" else "cpu"
    missing = sorted(name for module, name in SERVER_MODULES.items() if not _is_installed(module))
    if missing:
        text = f"{', '.join(missing)} missing; only the client's commands work"
        yield Finding("packages", Status.PROBLEM, text, install(extra), {"missing": missing})
    else:
        yield Finding("packages", Status.OK, "all packages of the server are installed", data={"missing": []})
    yield onnxruntime(distributions(), extra)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def distributions(path: Sequence[str] | None = None) -> list[Distribution]:
    """Returns every installed distribution that has the package onnxruntime, sorted by name."""
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    runtimes = {
        one.name: one
        for one in found
        if (one.metadata["Name"] or "").lower().replace("_", "-").startswith((_RUNTIME, "ort-"))
    }
    return [
        Distribution(name, one.version, tuple(_altered(one)))
        for name, one in sorted(runtimes.items())
        if any(str(file) == _PACKAGE for file in one.files or ())
    ]


def _altered(distribution: metadata.Distribution) -> Iterator[str]:
    """Yields the files that are missing or have another size. Two builds of one library never have the same size."""
    for file in distribution.files or ():
        if not str(file).startswith(f"{_RUNTIME}/") or file.size is None:
            continue
        try:
            size = file.locate().stat().st_size  # type: ignore[attr-defined]
        except OSError:
            size = -1
        if size != file.size:
            yield str(file)


def onnxruntime(found: Sequence[Distribution], extra: str) -> Finding:
    """Returns what the installed distributions of ONNX Runtime mean. `extra`: cpu or gpu, the one to install."""
    name = "ONNX Runtime"
    data = {"distributions": [{"name": one.name, "version": one.version, "altered": one.altered} for one in found]}
    if not found:
        return Finding(name, Status.PROBLEM, "no distribution of it is installed", install(extra), data)
    if len(found) > 1:
        whole = [str(one) for one in found if not one.altered]
        there = f"those of {' and '.join(whole)}" if whole else "a mixture"
        text = f"{' and '.join(map(str, found))} overwrite each other's files; the files here are {there}"
        fix = diagnosis.reinstall([one.name for one in found], install(extra))
        return Finding(name, Status.PROBLEM, text, fix, data)
    (one,) = found
    if one.altered:
        more = f" and {len(one.altered) - _NAMED} more" if len(one.altered) > _NAMED else ""
        text = f"files of {one} are missing or were overwritten: {', '.join(one.altered[:_NAMED])}{more}"
        fix = f"pip install --force-reinstall --no-deps {one.name}=={one.version}"
        return Finding(name, Status.PROBLEM, text, fix, data)
    return Finding(name, Status.OK, str(one), data=data)
