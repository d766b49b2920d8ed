"""Feeds mutated image files to the preprocessing, which must return a row or raise `InvalidInput`, nothing else.

The seed and the numbers of the mutations determine a run, so every failure can be repeated:

    python tests/fuzz.py --seed 0 --first 17123 --count 1
"""

import argparse
import contextlib
import io
import json
import random
import signal
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import cbook
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_sample_image

from cnnserve.errors import InvalidInput
from cnnserve.images.preprocessing import ImageOptions, Preprocessor
from cnnserve.process import heap
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo

SPEC = Preprocessing("RGB", Resize("shorter", (64,)), (56, 56), (0.0,) * 3, (1.0,) * 3, "graph")
TENSOR = TensorInfo("image", "UINT8", (56, 56, 3), "NHWC")
# CPU time after which the kernel ends the process, even if native code is running.
WATCHDOG_S = 10.0
# After this share of the mutations, the memory of the process must not grow any more.
_SETTLED = 0.3


@cache
def seeds() -> list[bytes]:
    """Returns small real files of every format that the server reads, with metadata of cameras and editors."""
    photograph = Image.fromarray(load_sample_image("flower.jpg")).resize((160, 107))
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB").resize((64, 75))
    alpha = portrait.convert("RGBA")
    alpha.putalpha(portrait.convert("L"))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 400, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>', zip=True)
    profile = zlib.compress(bytes(3000))
    frames = {"save_all": True, "append_images": [portrait.rotate(90), portrait.rotate(180)]}
    grey16 = Image.fromarray(np.asarray(portrait.convert("L")).astype(np.uint16) * 257)
    made: list[tuple[Image.Image, str, dict[str, object]]] = [
        (photograph, "JPEG", {"subsampling": "4:2:0", "exif": exif, "icc_profile": profile}),
        (photograph, "JPEG", {"subsampling": "4:4:4", "progressive": True}),
        (portrait, "JPEG", {"subsampling": "4:2:2", "restart_marker_blocks": 2}),
        (portrait, "JPEG", {"progressive": True, "xmp": b'<x tiff:Orientation="8"/>'}),
        (portrait.convert("L"), "JPEG", {}),
        (portrait.convert("CMYK"), "JPEG", {}),
        (portrait, "MPO", {**frames, "exif": exif}),
        (photograph, "PNG", {"pnginfo": text, "exif": exif, "icc_profile": profile}),
        (photograph.quantize(64), "PNG", {"transparency": bytes(range(64))}),
        (alpha, "PNG", {}),
        (grey16, "PNG", {}),
        (portrait.convert("1"), "PNG", {}),
        (portrait, "PNG", frames),
        (photograph, "WEBP", {"exif": exif}),
        (portrait, "WEBP", {"lossless": True}),
        (alpha, "WEBP", {"icc_profile": profile}),
        (portrait, "WEBP", frames),
        (portrait, "BMP", {}),
        (portrait.quantize(16), "BMP", {}),
        (alpha, "BMP", {}),
        (portrait.convert("1"), "BMP", {}),
        (photograph.quantize(128), "GIF", {"comment": b"words " * 100, "interlace": 1}),
        (portrait.quantize(32), "GIF", {**frames, "transparency": 3, "disposal": 2}),
    ]
    files = []
    for image, kind, options in made:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def mutation(seed: int, number: int) -> bytes:
    """Returns the mutation of a number: one of the seeds, changed in one to four ways."""
    chance = random.Random(f"{seed} {number}")
    data = bytearray(chance.choice(seeds()))
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        chance.choice(_WAYS)(data, chance)
    return bytes(data)


def _flip_bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8, 50)) if data else 0):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _edit_header(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randint(1, 4) if data else 0):
        data[chance.randrange(min(len(data), 64))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))


def _edit_number(data: bytearray, chance: random.Random) -> None:
    """Writes an integer of two or four bytes somewhere; it may become a size, a length or an offset."""
    form = chance.choice(("<H", ">H", "<I", ">I"))
    if len(data) >= 4:
        at = chance.randrange(min(len(data) - 3, chance.choice((64, 700, len(data)))))
        value = chance.choice((0, 1, 255, 7000, 0x7FFF, 0xFFFF, 2**31 - 1, 2**32 - 1, chance.randrange(2**32)))
        struct.pack_into(form, data, at, value % 2 ** (8 * struct.calcsize(form)))


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.choice((1, 2, 16, 500))]


def _repeat(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = data[at : at + chance.choice((1, 4, 40, 800))] * chance.choice((1, 1, 3, 200))


def _splice(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(seeds())
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other)) :]


def _insert(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(seeds())
    at, start = chance.randrange(len(data) + 1), chance.randrange(len(other))
    data[at:at] = other[start : start + chance.choice((4, 30, 400))]


def _mend_checksums(data: bytearray, chance: random.Random) -> None:
    """Corrects the checksums of a PNG, so that earlier changes reach its decoder."""
    position = 8
    while data.startswith(b"\x89PNG") and position + 12 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        if position + 12 + length > len(data):
            break
        struct.pack_into(">I", data, position + 8 + length, zlib.crc32(data[position + 4 : position + 8 + length]))
        position += 12 + length


_WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip_bits, _flip_bits, _edit_header, _edit_number, _edit_number, _truncate, _remove, _repeat, _splice),
    *(_insert, _mend_checksums),
)


def run(seed: int, first: int, count: int, progress: Path | None = None) -> dict[str, object]:
    """Preprocesses `count` mutations and returns the outcomes, and the `failures` by the numbers of the mutations."""
    exact, fast = (Preprocessor(SPEC, TENSOR, ImageOptions(fast=fast)) for fast in (False, True))
    outcomes: Counter[str] = Counter()
    failures: dict[int, str] = {}
    slowest, settled = (0.0, -1), 0
    for number in range(first, first + count):
        data = mutation(seed, number)
        if progress is not None:
            progress.write_text(str(number))
        signal.setitimer(signal.ITIMER_PROF, WATCHDOG_S)
        started = time.process_time()
        try:
            (fast if number % 4 == 3 else exact).encoded(data)
            outcome = "picture"
        except InvalidInput as error:
            outcome = "refused"
            if len(str(error)) > 500:
                failures[number] = f"a message of {len(str(error))} characters"
        except Exception as error:
            outcome, failures[number] = "failure", repr(error)
        seconds = time.process_time() - started
        signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, (seconds, number))
        outcomes[outcome] += 1
        if number == first + int(_SETTLED * count):
            settled = _memory_kib("VmRSS")
    return {
        "outcomes": outcomes,
        "failures": failures,
        "slowest_cpu_s": slowest[0],
        "slowest": slowest[1],
        "growth_mib": (_memory_kib("VmRSS") - settled) / 1024,
        "peak_mib": _memory_kib("VmHWM") / 1024,
    }


def _memory_kib(field: str) -> int:
    """Returns `VmRSS` or `VmHWM` of this process. `ru_maxrss` would not do: a child inherits it from its parent."""
    heap.trim()
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def _main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("--seed", 0), ("--first", 0), ("--count", 1000)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--progress", type=Path, help="file for the number of the current mutation (default: none)")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        print(json.dumps(run(options.seed, options.first, options.count, options.progress)))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
