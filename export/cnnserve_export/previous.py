"""What a new version takes from the newest version of the same model: labels, preprocessing, and what its output is.

A second export, of other weights or in another precision, usually means the same classes and the same images. Without
this, a version whose labels were forgotten would serve empty ones.
"""

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import version_number
from cnnserve.repository.manifest import Manifest, Preprocessing
from cnnserve_export.contract import Activation


@dataclass(frozen=True)
class Previous:
    """A published version: number, labels, preprocessing, and the `--activation` that its output needed."""

    version: int
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    activation: Activation


@dataclass(frozen=True)
class Settled:
    """What a new version starts from. `labels` are those of the earlier version, if it takes them.

    `told` says what was taken from the earlier version, for the line of a stage.
    """

    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    activation: Activation
    told: str = ""


def settle(
    earlier: Previous | None,
    *,
    brought: Preprocessing | None,
    needs_labels: bool,
    activation: Activation,
) -> Settled:
    """Returns what a new version starts from: what was `brought`, else what the earlier version has, if there is one.

    `brought` is the preprocessing of --preprocessing or of published weights. `needs_labels`: neither flags nor weights
    bring labels. `activation` is the flag; "auto" takes the earlier one.
    """
    if earlier is None:
        return Settled(brought, None, activation)
    labels = earlier.labels if needs_labels else None
    taken = ["labels"] * (labels is not None) + ["preprocessing"] * (brought is None)
    if activation == "auto" and earlier.activation != "auto":
        activation = earlier.activation
        taken.append(f"--activation {activation}")
    told = f"; taken from version {earlier.version}: {', '.join(taken)}" if taken else ""
    return Settled(brought or earlier.preprocessing, labels, activation, told)


def newest(repository: Path, model: str, architecture: str) -> Previous | None:
    """Returns the newest version of a model that has this architecture and an intact label file, or None."""
    # `publish.plan` says what is wrong with folders.
    folders: Sequence[Path] = ()
    with suppress(OSError):
        folders = _folders(repository / model)
    for folder in folders:
        # No server loads a version with a broken manifest or label file.
        with suppress(ModelLoadFailed, OSError, UnicodeDecodeError):
            manifest = manifests.read(folder)
            if manifest is not None and manifest.architecture == architecture:
                return _of(manifest, int(folder.name), _labels(manifest, folder))
    return None


def _folders(model: Path) -> Sequence[Path]:
    if not model.is_dir():
        return []
    return sorted((path for path in model.iterdir() if version_number(path.name)), key=lambda p: -int(p.name))


def _of(manifest: Manifest, version: int, labels: tuple[str, ...] | None) -> Previous:
    added = manifest.activation_by == "export"
    activation: Activation = "sigmoid" if added and manifest.activation == "sigmoid" else "auto"
    return Previous(version, labels, manifest.preprocessing, activation)


def _labels(manifest: Manifest, folder: Path) -> tuple[str, ...] | None:
    if manifest.labels is None:
        return None
    data = (folder / manifest.labels).read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest.files[manifest.labels].sha256:
        raise ModelLoadFailed(f"{manifest.labels} was altered")
    return tuple(data.decode("utf-8-sig").removesuffix("\n").split("\n"))
