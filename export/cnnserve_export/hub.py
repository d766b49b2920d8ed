"""torchvision's published ImageNet weights: which files there are, and getting one into torch's cache.

Files, digests and transforms are those of torchvision 0.28 (`torchvision.models`, `WeightsEnum`), the 1000 names in
`imagenet_labels.txt` its `_meta._IMAGENET_CATEGORIES`. torchvision itself is not needed.
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

# What `--weights` understands besides a file; the first is the newest edition, torchvision's DEFAULT.
WORDS = ("imagenet", "imagenet-v1", "imagenet-v2")

_FOLDER = "https://download.pytorch.org/models/"
_TIMEOUT_S = 30
_PIECE = 1 << 20


@dataclass(frozen=True)
class Published:
    """One published file. `resize` is the shorter side before the crop of 224, in pixels.

    With `transform_input` the network first takes the values from ImageNet's normalisation to -1 to 1.
    """

    architecture: str
    word: str
    url: str
    resize: int = 256
    transform_input: bool = False

    @property
    def file(self) -> str:
        """Its name in torch's cache, NAME-DIGITS.pth."""
        return self.url.rpartition("/")[2]

    @property
    def sha256_prefix(self) -> str:
        """What its SHA-256 begins with: the file's name says it."""
        return self.file.removesuffix(".pth").rpartition("-")[2]

    @property
    def edition(self) -> str:
        """torchvision's name for it."""
        return self.word.replace("imagenet-v", "IMAGENET1K_V")


# An architecture's newest edition last.
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
    """The file that one of `WORDS` means for an architecture. Raises `ExportError` where there is none."""
    editions = {published.word: published for published in PUBLISHED if published.architecture == architecture}
    if not editions:
        names = ", ".join(dict.fromkeys(published.architecture for published in PUBLISHED))
        raise ExportError(f"there are no published ImageNet weights for {architecture}, only for {names}")
    if word == WORDS[0]:
        return list(editions.values())[-1]
    if word not in editions:
        raise ExportError(f"there are no {word} weights for {architecture}, only {', '.join(editions)}")
    return editions[word]


def recognise(architecture: str, sha256: str) -> Published | None:
    """The published file with this digest, whatever it is called now; None where it is none of them."""
    return next((p for p in PUBLISHED if p.architecture == architecture and sha256.startswith(p.sha256_prefix)), None)


def cache() -> Path:
    """Where torch keeps downloaded weights: below `TORCH_HOME`, by default in ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def fetch(published: Published, folder: Path, tell: Callable[[int, int], None]) -> Path:
    """The file in `folder`, downloaded first where it is missing; `tell` hears of bytes done and in all (0: unknown).

    A download appears under its name when it is complete and its SHA-256 begins as it should. A file that was there is
    given unread: who loads it compares its digest. Raises `ExportError`; nothing is left in `folder` then.
    """
    path = folder / published.file
    # Two exports may download the same file at once: each has its own, and the later one replaces the earlier.
    partial = folder / f"{published.file}.{secrets.token_hex(4)}.partial"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _download(published, path, partial, tell)
            partial.replace(path)
    except OSError as error:
        raise ExportError(
            f"{published.file} cannot be kept in {folder}: {error.strerror}; TORCH_HOME names another folder"
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
            f"what {published.url} gave is not the published file: its SHA-256 begins "
            f"{digest.hexdigest()[: len(published.sha256_prefix)]}, expected {published.sha256_prefix}"
        )


def _pieces(url: str, path: Path) -> Iterator[tuple[bytes, int, int]]:
    """The answer's bytes piece by piece, each with how many there are so far and in all."""
    done = size = 0
    try:
        # The table's addresses alone come here, all of them https.
        with urlopen(Request(url), timeout=_TIMEOUT_S) as answer:  # noqa: S310
            size = int(answer.headers.get("Content-Length", 0))
            while piece := answer.read(_PIECE):
                done += len(piece)
                yield piece, done, size
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(url, path, _reason(error)) from error
    if done < size:
        raise _unreachable(url, path, f"the connection ended after {done:,} of {size:,} bytes")


def _unreachable(url: str, path: Path, reason: str) -> ExportError:
    return ExportError(
        f"{path.name} is not in torch's cache and cannot be downloaded: {url}: {reason}; "
        f"get the file some other way and put it at {path}"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"the server answered {error.code} {error.reason}"
    return str(getattr(error, "reason", error)) or type(error).__name__
