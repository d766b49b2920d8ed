"""Ways to spoil a published version, one at a time, and what the server says of each."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import folders
from cnnserve.repository.signature import Trust
from support import REPOSITORY, open_version, rewrite_manifest

SCHEMA_1 = Path(__file__).parent / "trust" / "schema1"
# The value of a field that is deleted.
GONE: Any = object()

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Spoiling:
    """One change of a version folder, and a pattern of what the server says of it."""

    what: str
    change: Change
    said: str

    def __str__(self) -> str:
        return self.what


def lenet5(root: Path, *, schema: int = 2) -> Path:
    """Copies the trained LeNet-5 into a model repository and returns the version folder."""
    source = SCHEMA_1 if schema == 1 else REPOSITORY
    shutil.copytree(source / "lenet5", root / "lenet5")
    return root / "lenet5" / "1"


def refusal(folder: Path, trust: Trust | None = None) -> str:
    """Returns why the server, with trusted keys or without, does not serve a version folder; "" if it does."""
    try:
        open_version(folders.find(folder.parent.parent, folder.parent.name, trust=trust), int(folder.name))
    except ModelLoadFailed as error:
        return str(error)
    return ""


def field(path: str, value: Any) -> Change:
    """Returns a change of one field of the manifest. Its path is divided by "/", because file names have dots."""

    def change(folder: Path) -> None:
        raw = json.loads((folder / "manifest.json").read_text())
        *parents, last = path.split("/")
        target = raw
        for name in parents:
            target = target[int(name) if isinstance(target, list) else name]
        if value is GONE:
            del target[last]
        else:
            target[last] = value
        (folder / "manifest.json").write_text(json.dumps(raw))

    return change


def text(old: str, new: str) -> Change:
    """Returns a change of the manifest's text, once."""

    def change(folder: Path) -> None:
        before = (folder / "manifest.json").read_text()
        assert before.count(old) >= 1, f"the manifest has no {old}"
        (folder / "manifest.json").write_text(before.replace(old, new, 1))

    return change


def content(data: bytes) -> Change:
    """Returns a change of the whole manifest."""
    return lambda folder: (folder / "manifest.json").write_bytes(data)


def file(name: str, change: Callable[[bytes], bytes]) -> Change:
    """Returns a change of a file, whose digest in the manifest is changed as well."""

    def changed(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        rewrite_manifest(folder)

    return changed


def rare_classes_exchanged(folder: Path) -> None:
    """Exchanges two classes in model.onnx of which no golden image has a probability above 1e-4."""
    model = onnx.load(folder / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in ("weights", "bias"):
            values = numpy_helper.to_array(tensor)[..., [2, 1, 0]]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    onnx.save(model, folder / "model.onnx")
