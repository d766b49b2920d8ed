"""ONNX Runtime's error texts in words that say what to do."""

import re
from collections.abc import Collection

from cnnserve.repository.onnx_header import PORTABLE_OPSET, OnnxHeader

_IR = re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)")
_OPSET = re.compile(r"Opset (\d+) is under development.*for domain (\S+) is till opset (\d+)")
_DEVICE = re.compile(r"((?:CUDA|CUDNN|CUBLAS) failure -?\d+: [^;]*?)\s*;")
_LIBRARY = re.compile(r"(lib[\w+-]+\.so[.\d]*): cannot open shared object file")
# What precedes the message: source files and C++ signatures up to the last closing parenthesis or bracket.
_ORIGIN = re.compile(r"^(?:\[ONNXRuntimeError\] : \d+ : \w+ : )?(?:/onnxruntime_src/\S+:\d+ .*?[)\]] (?=[A-Z]))?")

_EXTRA = 'pip install "cnnserve[gpu]"'


def reason(text: str) -> str:
    """The first line of an error without its origin."""
    if match := _DEVICE.search(text):
        return match[1]
    lines = _ORIGIN.sub("", text.strip()).splitlines()
    return lines[0] if lines else "no reason given"


def too_new(text: str, header: OnnxHeader | None, distribution: str, version: str) -> str | None:
    """What to do about a file newer than ONNX Runtime reads; None where the error is about something else.

    `header` is the file's; the runtime comes from `distribution` (`onnxruntime` or `onnxruntime-gpu`) in `version`.
    """
    if match := _IR.search(text):
        written, limit = f"IR version {match[1]}", f"IR version {match[2]}"
    elif match := _OPSET.search(text):
        written, limit = f"opset {match[1]} of {match[2]}", f"opset {match[3]}"
    else:
        return None
    return (
        f"it is written in {header or written}, {distribution} {version} reads up to {limit}: "
        f"pip install -U {distribution}, or make the file again with cnnserve export … --opset {PORTABLE_OPSET} or "
        f"torch.onnx.export(…, opset_version={PORTABLE_OPSET})"
    )


def is_device_failure(text: str) -> bool:
    """Whether the error is about the GPU or its driver, not about the model."""
    return _DEVICE.search(text) is not None


def library_in(text: str) -> str | None:
    """The shared library that an error says is not there."""
    match = _LIBRARY.search(text)
    return match[1] if match else None


def missing_library(library: str, provider: str) -> str:
    """What to do about a library that the provider needs and that is not there."""
    if library.startswith("libcuda."):
        fix = "it comes with the NVIDIA driver; give a container its GPUs (docker run --gpus all)"
    elif library.startswith(("libnvinfer", "libnvonnxparser")):
        fix = "it comes with TensorRT, which no extra of cnnserve brings; install it, or remove the accelerator"
    else:
        fix = _EXTRA
    return f"{provider} cannot be used, {library} is missing: {fix}"


def not_built_in(provider: str, distributions: Collection[str]) -> str:
    """What to do where the installed ONNX Runtime was built without the provider.

    `distributions` are the installed ones of `onnxruntime` and `onnxruntime-gpu`.
    """
    # The two wheels hold the same files: the one installed last overwrites the other, and removing one breaks both.
    if "onnxruntime" in distributions:
        remove = "pip uninstall -y " + " ".join(sorted(distributions))
        return (
            f"the installed onnxruntime has no {provider}: it is the CPU wheel, and the wheels overwrite each other; "
            f"first {remove}, then {_EXTRA}"
        )
    return f"the installed onnxruntime has no {provider}: {_EXTRA}"
