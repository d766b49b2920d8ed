"""Compares the CPU time from the bytes of a JPEG to a model's input: `exact` and `fast` with torchvision's transforms.

torchvision's transforms are the usual ones: `Image.open(...).convert("RGB")`, `Resize(256)`, `CenterCrop(224)`,
`ToTensor` and `Normalize`; Pillow decodes. cnnserve's preprocessing ends with the uint8 row, because the exported graph
does the rest. All three take turns on one decoding thread of a process that is set up like the server; the results are
medians over the rounds. The 500x375 images are photographs scaled down. The 1920x1080 images are photographs side by
side in their own resolution.

    python bench/preprocessing.py --rounds 60
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import harness
import numpy as np
import PIL
import torch
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_sample_image

from cnnserve.images.preprocessing import ImageOptions, Preprocessor
from cnnserve.process import heap
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo

sys.path.append(str(harness.BENCH.parent / "tests"))

from torchvision_pixels import load_transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGETS = {("500x375", "exact"): 0.85, ("500x375", "fast"): 0.6, ("1920x1080", "fast"): 0.4}
QUALITY = 90

Read = Callable[[bytes], Any]


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if every target was reached."""
    parser = argparse.ArgumentParser(description="Compare preprocessing with torchvision's transforms.")
    harness.add_rounds(parser, 60)
    parser.add_argument("--quality", type=int, default=QUALITY, help="quality of the JPEGs (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # As the server does. The C library returns a thread's memory less often than that of the main thread.
    heap.limit_arenas(2)
    with ThreadPoolExecutor(1) as decoders:
        return decoders.submit(_run, options).result()


def _run(options: argparse.Namespace) -> int:
    readers = _readers()
    results: dict[str, Any] = {}
    passed = True
    for size, files in _files(options.quality).items():
        cells = {name: _measure(readers, data, options.rounds) for name, data in files.items()}
        differences = {name: _difference(readers, data) for name, data in files.items()}
        total = {reader: sum(cell[reader] for cell in cells.values()) for reader in readers}
        ratios = {reader: total[reader] / total["torchvision"] for reader in readers}
        results[size] = {"ratios": ratios, "cpu_ms": cells, "bytes": {n: len(d) for n, d in files.items()}}
        results[size]["fast_against_exact"] = differences
        passed &= _print(size, cells, ratios, differences)
    harness.write_result(
        "preprocessing",
        {"quality": options.quality, "rounds": options.rounds, "sizes": results, "pillow": PIL.__version__},
    )
    return 0 if passed else 1


def _readers() -> dict[str, Read]:
    spec = Preprocessing("RGB", Resize("shorter", (256,)), (224, 224), MEAN, STD, "graph")
    tensor = TensorInfo("image", "UINT8", (224, 224, 3), "NHWC")
    transforms = load_transforms()
    compose = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    return {
        "torchvision": lambda data: compose(Image.open(io.BytesIO(data)).convert("RGB")),
        "exact": Preprocessor(spec, tensor).encoded,
        "fast": Preprocessor(spec, tensor, ImageOptions(fast=True)).encoded,
    }


def _files(quality: int) -> dict[str, dict[str, bytes]]:
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = Image.open(file).convert("RGB")
    photographs = {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("china", "flower")}
    small = {name: image.resize((500, 375), Image.Resampling.LANCZOS) for name, image in photographs.items()}
    small["hopper"] = hopper.crop((0, 60, 512, 444)).resize((500, 375), Image.Resampling.LANCZOS)
    large = {name: _side_by_side(image) for name, image in photographs.items()}
    return {
        size: {name: _jpeg(image, quality) for name, image in images.items()}
        for size, images in (("500x375", small), ("1920x1080", large))
    }


def _side_by_side(image: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (1920, 1080))
    for left in range(0, 1920, image.width):
        for top in range(0, 1080, image.height):
            whole.paste(image, (left, top))
    return whole


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _measure(readers: dict[str, Read], data: bytes, rounds: int) -> dict[str, float]:
    """Returns the median CPU time of each reader in milliseconds."""
    for read in readers.values():
        read(data)
    times: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds):
        for name in list(readers)[:: 1 if number % 2 else -1]:
            started = time.thread_time()
            readers[name](data)
            times[name].append(time.thread_time() - started)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _difference(readers: dict[str, Read], data: bytes) -> dict[str, float]:
    """Returns how `fast` differs from `exact`: the share of values that differ, the largest and the mean difference.

    Differences are in steps of 1/255.
    """
    steps = np.abs(readers["fast"](data).astype(int) - readers["exact"](data))
    return {"share": float((steps > 0).mean()), "largest": int(steps.max()), "mean": float(steps.mean())}


def _print(
    size: str, cells: dict[str, dict[str, float]], ratios: dict[str, float], differences: dict[str, dict[str, float]]
) -> bool:
    rows = []
    for name, cell in cells.items():
        off = differences[name]
        rows.append([name, *(f"{value:.3f}" for value in cell.values()), f"{off['share']:.2%}", str(off["largest"])])
    print(f"\n{size}, CPU time per image in ms")
    print(harness.table(["photograph", *ratios, "values differ", "by at most"], rows))
    passed = True
    for (of, reader), target in TARGETS.items():
        if of == size:
            reached = ratios[reader] <= target
            passed &= reached
            verdict = harness.verdict(passed=reached)
            print(f"  {verdict:<6}  {reader} <= {target} times torchvision: {ratios[reader]:.3f}")
    sys.stdout.flush()
    return passed


if __name__ == "__main__":
    sys.exit(main())
