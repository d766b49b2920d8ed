"""Checks the execution providers, and the NVIDIA driver below them."""

import re
from collections.abc import Iterator
from pathlib import Path

from cnnserve.doctor import child
from cnnserve.doctor.child import ChildFailed, Event
from cnnserve.doctor.findings import Context, Finding, Status, many, parted
from cnnserve.extras import install
from cnnserve.runtime import cuda

# ONNX Runtime with CUDA needs some seconds to load its libraries from a cold disk.
_LIMIT_S = 120.0
_PCI = Path("/sys/bus/pci/devices")
_DRIVER = Path("/proc/driver/nvidia/version")
_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")
_DRIVER_VERSION = re.compile(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s")


def providers(context: Context) -> Iterator[Finding]:
    """Yields for each execution provider whether it can be used, and otherwise what it lacks."""
    wanted = {"cpu", str(context.settings.get("device", "cpu"))}
    try:
        for event in child.run("providers", {}, lambda _: _LIMIT_S):
            yield _provider(event, needed=event["kind"] in wanted)
    except ChildFailed as error:
        text = f"the process that tries the execution providers failed: {error}"
        yield Finding("ONNX Runtime", Status.PROBLEM, text, "see the packages and ONNX Runtime above")


def _provider(event: Event, *, needed: bool) -> Finding:
    name = event["name"]
    if event["lacks"]:
        problem, fix = parted(event["lacks"], install("gpu"))
        status = Status.PROBLEM if needed else Status.NOTE
        return Finding(name, status, problem, fix.removeprefix("run "), event)
    device = f"on {event['device']}, built for CUDA {event['cuda']}" if "device" in event else "works"
    if event["optional"]:
        text = f"{device}; {event['optional']} is missing, so convolutions run on slower kernels"
        return Finding(name, Status.WARNING, text, install("gpu"), event)
    return Finding(name, Status.OK, device, data=event)


def driver(context: Context, pci: Path = _PCI, version_file: Path = _DRIVER) -> Iterator[Finding]:
    """Yields the driver of NVIDIA's GPUs: its version and the newest CUDA that it supports, or why there is none."""
    needed = context.settings.get("device") == "cuda"
    gpus = _gpus(pci)
    try:
        newest, missing = cuda.driver_version(), ""
    except OSError as error:
        newest, missing = "", str(error)
    data = {"driver": _version(version_file), "cuda": newest, "pci_devices": gpus}
    if newest:
        driver_text = f"driver {data['driver'] or 'of unknown version'}, supports CUDA up to {newest}"
        yield Finding("NVIDIA driver", Status.OK, driver_text, data=data)
    elif data["driver"] or gpus:
        text = f"{many(gpus, 'NVIDIA GPU')} on the PCI bus, but the driver's library cannot be used: {missing}"
        fix = "install the NVIDIA driver, or give the container its GPUs (docker run --gpus all)"
        yield Finding("NVIDIA driver", Status.PROBLEM if needed else Status.NOTE, text, fix, data)
    else:
        text = "this machine shows no NVIDIA GPU"
        fix = "run on a machine with a GPU, or set --device cpu" if needed else ""
        yield Finding("NVIDIA driver", Status.PROBLEM if needed else Status.NOTE, text, fix, data)


def _gpus(pci: Path) -> int:
    """Returns the number of NVIDIA's display devices on the PCI bus."""
    devices = [(_text(file), _text(file.with_name("class"))) for file in pci.glob("*/vendor")]
    return sum(vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASSES) for vendor, kind in devices)


def _version(file: Path) -> str:
    match = _DRIVER_VERSION.search(_text(file))
    return match[1] if match else ""


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
