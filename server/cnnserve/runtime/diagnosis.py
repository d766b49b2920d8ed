"""Turns error texts of ONNX Runtime into texts that say what to do."""

import re
from collections.abc import Collection

from cnnserve import extras
from cnnserve.process.redaction import redacted
from cnnserve.repository.onnx_header import PORTABLE_OPSET, OnnxHeader

_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"Opset (\d+) is under development.*for domain (\S+) is till opset (\d+)")
_DEVICE = re.compile(r"((?:CUDA|CUDNN|CUBLAS) failure -?\d+: [^;]*?)\s*;")
_LIBRARY = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
# The part before the message: source files and C++ signatures, up to the last closing parenthesis or bracket.
_ORIGIN = re.compile(r"^(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?(?:/onnxruntime_src/\S+:\d+ .*?[)\]] (?=[A-Z]))?")

# At most so many of the indices that ONNX Runtime lists, a line each.
_INDICES = 4

# What CUDA answers if the driver is older than the libraries, and the oldest driver for those that extra gpu installs.
_OLD_DRIVER = "CUDA failure 35"
DRIVER = 580


def reason(text: str) -> str:
    """Returns the first line of an error text, without the part before the message, with the indices after it."""
    if match := _DEVICE.search(text):
        if match[1].startswith(_OLD_DRIVER):
            return f"{match[1]}; install NVIDIA driver {DRIVER} or newer on the host, which CUDA 13 needs"
        return match[1]
    lines = redacted(_ORIGIN.sub("", text.strip())).splitlines()
    if not lines:
        return "no reason given"
    told = [line.strip() for line in lines[1 : 1 + _INDICES] if line.startswith(" index:")]
    return f"{lines[0]}: {', '.join(told)}" if told else lines[0]


def is_cut_off(text: str) -> bool:
    """Returns whether the error is that a file of external data has less bytes than the model needs."""
    return "out of bounds or can not be read in full" in text


def too_new(text: str, header: OnnxHeader | None, distribution: str, version: str) -> str | None:
    """Returns what to do about a file that is too new for ONNX Runtime, or None if the error has another reason.

    `header` is that of the file. `distribution` (`onnxruntime` or `onnxruntime-gpu`) and `version` are installed.
    """
    if match := _IR.search(text):
        written, limit = f"IR version {match[1]}", f"IR version {match[2]}"
    elif match := _OPSET.search(text):
        written, limit = f"opset {match[1]} of {match[2]}", f"opset {match[3]}"
    else:
        return None
    return (
        f"the file has {header or written}, but {distribution} {version} reads up to {limit}; "
        f"pip install -U {distribution}, or create the file again with cnnserve export … --opset {PORTABLE_OPSET} or "
        f"torch.onnx.export(…, opset_version={PORTABLE_OPSET})"
    )


def is_device_failure(text: str) -> bool:
    """Returns whether the error is about the GPU or its driver and not about the model."""
    return _DEVICE.search(text) is not None


def library_in(text: str) -> str | None:
    """Returns the shared library that an error text reports as missing, or None."""
    match = _LIBRARY.search(text)
    return match[1] if match else None


def missing_library(library: str, provider: str) -> str:
    """Returns what to do about a missing shared library that the provider needs."""
    if library.startswith("libcuda."):
        fix = "install the NVIDIA driver, or give the container its GPUs (docker run --gpus all)"
    elif library.startswith(("libnvinfer", "libnvonnxparser")):
        fix = "install TensorRT, which no extra of cnnserve installs, or remove the accelerator from config.pbtxt"
    else:
        fix = extras.install("gpu")
    return f"{provider} cannot be used, because {library} is missing; {fix}"


def reinstall(distributions: Collection[str], install: str) -> str:
    """Returns the command that removes all of `distributions`, which share files, and then runs `install`."""
    return f"pip uninstall -y {' '.join(sorted(distributions))} && {install}"


def not_built_in(provider: str, distributions: Collection[str]) -> str:
    """Returns what to do if the installed ONNX Runtime was built without the provider.

    `distributions`: which of `onnxruntime` and `onnxruntime-gpu` are installed.
    """
    # The two wheels install the same files: the later one overwrites the other, and removing one breaks both.
    if "onnxruntime" in distributions and not extras.image():
        return (
            f"the installed onnxruntime has no {provider}, because it is the CPU wheel, and the two wheels overwrite "
            f"each other; run {reinstall(distributions, extras.install('gpu'))}"
        )
    return f"the installed onnxruntime has no {provider}; {extras.install('gpu')}"
