"""The table of torchvision's published ImageNet weights, and the download of a file into torch's cache.

Files, digests and transforms are those of torchvision 0.28 (`torchvision.models`, `WeightsEnum`). torchvision itself is
not needed.
"""

import hashlib
import http.client
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch

from cnnserve_export.errors import ExportError

# What `--weights` accepts beside a file. The first word means the newest edition, torchvision's DEFAULT.
WORDS = ("imagenet", "imagenet-v1", "imagenet-v2")

_FOLDER = "https://download.pytorch.org/models/"
_TIMEOUT_S = 30
_PIECE = 1 << 20


@dataclass(frozen=True)
class Published:
    """One published file.

    `resize` is the shorter side before the crop of 224, in pixels. If `transform_input` is true, the network first
    changes the values from ImageNet's normalisation to the range -1 to 1.
    """

    architecture: str
    word: str
    url: str
    resize: int = 256
    transform_input: bool = False

    @property
    def file(self) -> str:
        """Name of the file in torch's cache, NAME-DIGITS.pth."""
        return self.url.rpartition("/")[2]

    @property
    def sha256_prefix(self) -> str:
        """First digits of the file's SHA-256, which are part of its name."""
        return self.file.removesuffix(".pth").rpartition("-")[2]

    @property
    def edition(self) -> str:
        """torchvision's name of the edition, such as IMAGENET1K_V1."""
        return self.word.replace("imagenet-v", "IMAGENET1K_V")


# The newest edition of an architecture is its last.
PUBLISHED = (
    Published("alexnet", "imagenet-v1", _FOLDER + "alexnet-owt-7be5be79.pth"),
    Published("googlenet", "imagenet-v1", _FOLDER + "googlenet-1378be20.pth", transform_input=True),
    Published("resnet18", "imagenet-v1", _FOLDER + "resnet18-f37072fd.pth"),
    Published("resnet34", "imagenet-v1", _FOLDER + "resnet34-b627a593.pth"),
    Published("resnet50", "imagenet-v1", _FOLDER + "resnet50-0676ba61.pth"),
    Published("resnet50", "imagenet-v2", _FOLDER + "resnet50-11ad3fa6.pth", resize=232),
    Published("resnet101", "imagenet-v1", _FOLDER + "resnet101-63fe2227.pth"),
    Published("resnet101", "imagenet-v2", _FOLDER + "resnet101-cd907fc2.pth", resize=232),
    Published("resnet152", "imagenet-v1", _FOLDER + "resnet152-394f9c45.pth"),
    Published("resnet152", "imagenet-v2", _FOLDER + "resnet152-f82ba261.pth", resize=232),
)


def find(architecture: str, word: str) -> Published:
    """Returns the file that one of `WORDS` means for an architecture. Raises `ExportError` if there is none."""
    editions = {published.word: published for published in PUBLISHED if published.architecture == architecture}
    if not editions:
        names = ", ".join(dict.fromkeys(published.architecture for published in PUBLISHED))
        raise ExportError(
            f"there are no published ImageNet weights for {architecture}, only for {names}; "
            "give a file as --weights FILE"
        )
    if word == WORDS[0]:
        return list(editions.values())[-1]
    if word not in editions:
        raise ExportError(f"there are no {word} weights for {architecture}; use --weights {' or '.join(editions)}")
    return editions[word]


def recognise(architecture: str, sha256: str) -> Published | None:
    """Returns the published file with this digest, whatever its name is now; None if there is none."""
    return next((p for p in PUBLISHED if p.architecture == architecture and sha256.startswith(p.sha256_prefix)), None)


def cache() -> Path:
    """Returns the folder of torch's downloaded weights: below `TORCH_HOME`, by default in ~/.cache/torch.

    Raises `ExportError` if this user has no home folder.
    """
    folder = Path(torch.hub.get_dir())
    if folder.parts[:1] == ("~",):
        # Python leaves it as it is, and it would become a folder of this name.
        raise ExportError("this user has no home folder for downloaded weights; set TORCH_HOME to a folder")
    return folder / "checkpoints"


def fetch(published: Published, folder: Path, tell: Callable[[int, int], None]) -> Path:
    """Returns the path of a published file in `folder`; downloads the file first if it is missing.

    `tell` gets the bytes done and the bytes in all (0: unknown). A download gets its name when it is complete and its
    SHA-256 begins as the table says. A file that is already there is not read: the caller must compare its digest.
    Raises `ExportError` if the file cannot be downloaded or written; nothing new is left in `folder` then.
    """
    path = folder / published.file
    # Two exports may download the same file at once. Each writes a file of its own, and the later replaces the earlier.
    partial = folder / f"{published.file}.{secrets.token_hex(4)}.partial"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _download(published, path, partial, tell)
            partial.replace(path)
    except OSError as error:
        raise ExportError(
            f"{published.file} cannot be written to {folder}: {error.strerror}; set TORCH_HOME to another folder"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def _download(published: Published, path: Path, partial: Path, tell: Callable[[int, int], None]) -> None:
    digest = hashlib.sha256()
    with partial.open("xb") as file:
        for piece, done, size in _pieces(published.url, path):
            file.write(piece)
            digest.update(piece)
            tell(done, size)
        file.flush()
        os.fsync(file.fileno())
    if not digest.hexdigest().startswith(published.sha256_prefix):
        raise ExportError(
            f"the download of {published.url} is not the published file: its SHA-256 begins with "
            f"{digest.hexdigest()[: len(published.sha256_prefix)]}, not with {published.sha256_prefix}; try again, or "
            f"download the file elsewhere and put it at {path}"
        )


def _pieces(url: str, path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Yields the bytes of the response in pieces, each with the number of bytes so far and in all."""
    done = size = 0
    try:
        # The URL comes from the table above, where all begin with https.
        with urlopen(Request(url), timeout=_TIMEOUT_S) as response:  # noqa: S310
            size = int(response.headers.get("Content-Length", 0))
            while piece := response.read(_PIECE):
                done += len(piece)
                yield piece, done, size
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(url, path, _reason(error)) from error
    if done < size:
        raise _unreachable(url, path, f"the connection ended after {done:,} of {size:,} bytes")


def _unreachable(url: str, path: Path, reason: str) -> ExportError:
    return ExportError(
        f"{path.name} is not in torch's cache and cannot be downloaded: {url}: {reason}; "
        f"download the file elsewhere and put it at {path}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"the server returned status {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__
