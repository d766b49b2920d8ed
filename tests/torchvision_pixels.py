"""torchvision's and timm's pixels, with which the tests compare those of `cnnserve.images.preprocessing`.

They run in a process of their own: this file as a program. Its standard input has the requests, each of which is
the length of a JSON line, that line, and the bytes of the file.
"""

import contextlib
import functools
import importlib
import io
import json
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cnnserve.repository.manifest import Preprocessing

# `make setup` installs them here.
FOLDER = Path(sys.prefix) / "torchvision"
TIMM = Path(sys.prefix) / "timm"


class Oracle:
    """Applies torchvision's `Resize` and `CenterCrop` to `Image.open(...).convert(...)`. It is a context manager."""

    def __enter__(self) -> "Oracle":
        for folder in (FOLDER, TIMM):
            if not folder.is_dir():
                raise FileNotFoundError(f"there is no {folder}; make setup installs it")
        command = [sys.executable, str(Path(__file__))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def pixels(self, data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
        """Returns the uint8 pixels (H x W x C) for the bytes of a file. Raises `ValueError` if torchvision fails."""
        pixels = self._ask(
            data,
            mode="L" if spec.color == "L" else "RGB",
            upright=spec.exif_orientation,
            resize=spec.resize and spec.resize.size,
            interpolation=spec.resize and spec.resize.interpolation,
            crop=spec.crop,
        )
        return pixels[:, :, ::-1] if spec.color == "BGR" else pixels

    def timm(self, data: bytes, config: dict[str, Any], *, normalize: bool = False) -> NDArray[Any]:
        """Returns what `timm.data.create_transform` makes of the bytes of a file with this data config, C x H x W.

        The result is uint8, or float32 with `normalize`.
        """
        return self._ask(data, timm=config, normalize=normalize)

    def _ask(self, data: bytes, **wanted: Any) -> NDArray[Any]:
        request = json.dumps({"bytes": len(data), **wanted}).encode()
        pipes = self._process
        assert pipes.stdin
        assert pipes.stdout
        pipes.stdin.write(struct.pack(">I", len(request)) + request + data)
        pipes.stdin.flush()
        answer = json.loads(pipes.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return np.frombuffer(pipes.stdout.read(answer["bytes"]), answer["type"]).reshape(answer["shape"])


def load_transforms() -> Any:
    """Returns `torchvision.transforms`. torchvision's compiled operators, which need another torch, are left out."""
    import torch  # noqa: PLC0415 - only in the process that needs it

    sys.path.append(str(FOLDER))
    register = torch.library.register_fake

    def register_others(name: Any, *arguments: Any, **keywords: Any) -> Any:
        if isinstance(name, str) and name.startswith("torchvision::"):
            return lambda function: function
        return register(name, *arguments, **keywords)

    torch.library.register_fake = register_others  # type: ignore[assignment]
    return importlib.import_module("torchvision.transforms")


@functools.cache
def load_timm() -> Any:
    """Returns the module `timm`. Call `load_transforms` first, because timm imports torchvision."""
    sys.path.append(str(TIMM))
    # What its own imports print must not mix with answers.
    with contextlib.redirect_stdout(sys.stderr):
        return importlib.import_module("timm")


def _answer(transforms: Any, request: dict[str, Any], data: bytes) -> NDArray[Any]:
    # The server has a limit of its own.
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(io.BytesIO(data))
    if "timm" in request:
        made = load_timm().data.create_transform(**request["timm"], normalize=request["normalize"])(
            image.convert("RGB")
        )
        return np.asarray(made)
    if request["upright"]:
        image = ImageOps.exif_transpose(image)
    image = image.convert(request["mode"])
    if request["resize"]:
        size = request["resize"][0] if len(request["resize"]) == 1 else request["resize"]
        mode = transforms.InterpolationMode(request["interpolation"])
        image = transforms.Resize(size, mode, antialias=True)(image)
    if request["crop"]:
        image = transforms.CenterCrop(request["crop"])(image)
    pixels = np.asarray(image)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels


def _main() -> None:
    warnings.simplefilter("ignore")
    transforms = load_transforms()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while length := source.read(4):
        request = json.loads(source.read(struct.unpack(">I", length)[0]))
        data = source.read(request["bytes"])
        try:
            pixels = _answer(transforms, request, data)
            answer = {"shape": pixels.shape, "type": pixels.dtype.str, "bytes": pixels.nbytes}
            sink.write(json.dumps(answer).encode() + b"\n" + pixels.tobytes())
        except Exception as error:
            sink.write(json.dumps({"error": repr(error)}).encode() + b"\n")
        sink.flush()


if __name__ == "__main__":
    _main()
