"""What tests of pulls have in common."""

import filecmp
import json
from pathlib import Path
from typing import Any

from cnnserve.sources.pull import pull
from cnnserve.sources.room import Room
from support import REPOSITORY


def pulled(address: str | Path, repository: Path, **more: Any) -> Path:
    """Pulls, and compares what was published with LeNet-5. Returns the folder of the version."""
    (arrived,) = pull(str(address), repository, more.pop("room", Room()), **more)
    assert arrived.folder == repository / "lenet5" / "1"
    same(REPOSITORY / "lenet5", repository / "lenet5")
    assert names(repository) == ["lenet5"]
    return arrived.folder


def same(expected: Path, found: Path) -> None:
    """Two folders have the same files, byte for byte."""
    files = sorted(str(path.relative_to(expected)) for path in expected.rglob("*") if path.is_file())
    assert sorted(str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()) == files
    assert filecmp.cmpfiles(expected, found, files, shallow=False)[0] == files


def names(folder: Path) -> list[str]:
    """What is in a folder, also what is hidden; nothing if there is none."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def blob(layout: Path, digest: str) -> Path:
    """The file of a blob."""
    return layout / "blobs" / "sha256" / digest.partition(":")[2]


def manifest(layout: Path) -> dict[str, Any]:
    """The manifest of a pack."""
    (top,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    found: dict[str, Any] = json.loads(blob(layout, top["digest"]).read_bytes())
    return found


def layer(layout: Path, path: str) -> dict[str, Any]:
    """The layer that is a file."""
    layers = manifest(layout)["layers"]
    return next(one for one in layers if one["annotations"]["org.cncf.model.filepath"] == path)
