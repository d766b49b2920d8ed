"""The checks that load native libraries. Only the child process of `child.py` imports this module."""

import ctypes
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnserve.doctor.child import Tell
from cnnserve.doctor.findings import Context
from cnnserve.errors import ServingError
from cnnserve.model import loader
from cnnserve.model.version import ModelInfo
from cnnserve.model_config import pbtxt
from cnnserve.model_config.providers import Kind, Provider
from cnnserve.repository import folders
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime import cuda, session
from cnnserve.runtime.workers import OnStage

_KINDS: tuple[Kind, ...] = ("cpu", "cuda", "tensorrt")
# Since 1.28, ONNX Runtime does without it, with other kernels.
_OPTIONAL = "libcudnn.so.9"


def providers(tell: Tell) -> None:
    """Tells for each execution provider what it lacks, "" if nothing."""
    for kind in _KINDS:
        provider = Provider(kind)
        event = {"name": provider.name, "kind": kind, "lacks": "", "optional": ""}
        try:
            session.require(provider)
            if kind != "cpu":
                event["device"] = cuda.device_name(0)
                event["cuda"] = session.cuda_version()
                event["optional"] = _missing_option()
        except session.ProviderUnavailable as error:
            event["lacks"] = str(error)
        except OSError as error:
            event["lacks"] = f"{provider.name} cannot be used, because {error}; install or update the NVIDIA driver"
        tell(event)


def _missing_option() -> str:
    try:
        ctypes.CDLL(_OPTIONAL)
    except OSError:
        return _OPTIONAL
    return ""


def load(
    tell: Tell,
    *,
    repository: str,
    models: Sequence[str],
    versions: Sequence[tuple[str, int]],
    config_name: str,
    trusted_keys: str | None,
    options: Mapping[str, Any],
) -> None:
    """Loads and self-tests versions, one after the other, and tells the outcome of each: `text` or `failure`."""
    root = Context({"repository": Path(repository), "model": models}).models or Path(repository)
    trust = None
    if trusted_keys is not None:
        trust = importlib.import_module("cnnserve.trust.keys").read(Path(trusted_keys))
    for number, (name, version) in enumerate(versions):
        started = time.monotonic()
        folder = folders.find(root, name, config_name, trust)
        tell({"version": number})
        paths = {"engine_cache": Path(options["engine_cache"])}
        try:
            with VersionFiles(folder, version) as files:
                info = loader.open_version(files, on_stage=_stage(tell, number), **{**options, **paths}).info
            tell({"version": number, "text": _text(info, time.monotonic() - started), "placement": info.placement})
        except ServingError as error:
            tell({"version": number, "failure": pbtxt.told(folder, str(error))})


def _text(info: ModelInfo, seconds: float) -> str:
    placement = ", ".join(f"{count} nodes on {provider}" for provider, count in info.placement.items())
    return f"loads in {seconds:.2f} s; {placement}; {info.self_test or info.probe}"


def _stage(tell: Tell, number: int) -> OnStage:
    def on_stage(text: str) -> None:
        tell({"version": number, "stage": text})

    return on_stage


TASKS: Mapping[str, Callable[..., None]] = {"providers": providers, "load": load}
