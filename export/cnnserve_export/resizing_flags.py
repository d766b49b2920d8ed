"""Makes the resize and the crop of a `Preprocessing` from the flags that describe them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from cnnserve.repository.manifest import INTERPOLATIONS as BY_LIBRARY
from cnnserve.repository.manifest import Interpolation, Library, Preprocessing, Resize, ResizeMode
from cnnserve_export.errors import ExportError

RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
LIBRARIES: tuple[Library, ...] = get_args(Library)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)

_SIZES = {"shorter": (1, 2), "exact": (2,), "letterbox": (1, 2), "fit": (1, 2)}

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ResizeFlags:
    """The flags of resize and crop; None for a flag that was not given. `pads`: a colour for padding was given."""

    size: tuple[int, ...] | None
    mode: ResizeMode | None
    library: Library | None
    interpolation: Interpolation | None
    crop: tuple[int, ...] | None
    crop_pct: float | None
    pads: bool

    @property
    def moves(self) -> bool:
        """Whether the flags say where the pixels go."""
        return any(value is not None for value in (self.size, self.mode, self.crop, self.crop_pct))


def complete(flags: ResizeFlags, size: Size, base: Preprocessing | None) -> tuple[Resize | None, Size | None]:
    """Returns the resize and the crop that give images of `size` (height, width); `base` has what no flag says.

    Raises `ExportError` if flags are missing or contradict each other.
    """
    if base is not None and base.size is not None and not flags.moves:
        if base.size != size:
            raise ExportError(
                f"an input of {size[0]}x{size[1]} pixels needs --resize, too; say how images get to that size"
            )
        return _filtered(base.resize, flags, base), base.crop
    if base is not None and base.resize is not None and flags.size is None and flags.crop_pct is None:
        # A crop, or another mode, of what the base resizes to.
        flags = replace(flags, size=base.resize.size, mode=flags.mode or base.resize.mode)
    resize, crop = _stated(flags, size)
    return _filtered(resize, flags, base), crop


def pair(sizes: Sequence[int]) -> Size:
    """Returns height and width; one size is that of a square."""
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _stated(flags: ResizeFlags, size: Size) -> tuple[Resize, Size | None]:
    if flags.crop is not None:
        if flags.size is None and flags.crop_pct is None:
            raise ExportError(f"--crop {_text(flags.crop)} needs --resize, too; give the size before the crop")
        if pair(flags.crop) != size:
            raise ExportError(f"a crop of {_text(flags.crop)} does not give the input's size {_text(size)}")
    if flags.crop_pct is not None:
        return _of_share(flags, flags.crop_pct, size)
    if flags.size is None:
        if flags.mode == "shorter":
            raise ExportError("--resize-mode shorter needs --resize; give the size of the shorter side")
        return Resize(flags.mode or "exact", size), None
    mode = flags.mode or ("shorter" if len(flags.size) == 1 else "exact")
    if len(flags.size) not in _SIZES[mode]:
        raise ExportError(f"--resize {_text(flags.size)} is one size, but --resize-mode {mode} needs H,W")
    resize = Resize(mode, pair(flags.size) if mode == "letterbox" else flags.size)
    if flags.crop is None and mode in ("exact", "letterbox") and resize.size != size:
        raise ExportError(
            f"--resize {_text(flags.size)} does not give the input's size {_text(size)}; "
            f"if the centre is to be kept, add --crop {_text(size)}"
        )
    _check_padding(resize, flags, size)
    is_final = mode != "shorter" and resize.size == size
    return resize, None if is_final else size


def _of_share(flags: ResizeFlags, share: float, size: Size) -> tuple[Resize, Size | None]:
    """The resize of which the crop keeps `share`, as timm computes it."""
    if flags.size is not None:
        raise ExportError("--crop-pct says to what an image is resized; leave out --resize")
    mode = flags.mode or "shorter"
    if mode == "fit":
        raise ExportError("--crop-pct has no meaning with --resize-mode fit; give --resize")
    height, width = (math.floor(side / share) for side in size)
    resize = Resize(mode, (height,) if mode == "shorter" and height == width else (height, width))
    _check_padding(resize, flags, size)
    return resize, None if mode != "shorter" and resize.size == size else size


def _check_padding(resize: Resize, flags: ResizeFlags, size: Size) -> None:
    """Raises `ExportError` if every image would be padded although nobody asked for that."""
    if flags.pads or resize.mode in ("letterbox", "fit"):
        return
    shortest = min(size) if len(resize.size) == 1 else None
    small = (
        resize.size[0] < shortest
        if shortest is not None
        else any(had < wanted for had, wanted in zip(resize.size, size, strict=True))
    )
    if small:
        raise ExportError(
            f"--resize {_text(resize.size)} is smaller than the input's {_text(size)}, so every image would be "
            "padded; give a larger --resize, or the colour of the border with --pad"
        )


def _filtered(resize: Resize | None, flags: ResizeFlags, base: Preprocessing | None) -> Resize | None:
    """The resize with interpolation and library of the flags, else of `base`."""
    if resize is None:
        return None
    before = base.resize if base is not None and base.resize is not None else Resize("exact", (1, 1))
    library = flags.library or before.library
    interpolation = flags.interpolation or before.interpolation
    if interpolation not in BY_LIBRARY[library]:
        raise ExportError(
            f"{library} has no interpolation {interpolation!r}; choose {', '.join(BY_LIBRARY[library])}"
            + (", or --resize-library opencv" if library == "pillow" else "")
        )
    return replace(resize, interpolation=interpolation, library=library, antialias=library == "pillow")


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
