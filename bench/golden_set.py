"""Counts the changed networks that golden images find: one image alone, as before, and the built-in set.

Each mutant is a trained network in which one filter was set to zero, negated, exchanged with another one or made 10 %
larger, or whose classes were exchanged. A mutant is found if the self-test would refuse it, and harmful if it moves a
probability of a photograph outside the set by more than 1e-2. Target: the set finds every harmful mutant.

    python bench/golden_set.py
    python bench/golden_set.py --choose FOLDER    # the images of FOLDER, in the order in which they find most
"""

import argparse
import functools
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import machine
import numpy as np
import torch
from demo import EXPORT, PHOTOGRAPHS, ROOT
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cnnserve.errors import ModelLoadFailed
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model.classification import softmax
from cnnserve.model.comparison import Tolerance, compare
from cnnserve.repository.manifest import LOG_TOLERANCES, TOLERANCES, Preprocessing
from cnnserve_export import contract, digits, flags, golden, golden_choice, preparation, train
from cnnserve_export.architectures import DIGITS

OLD = Tolerance(TOLERANCES["fp32"])
NEW = Tolerance(TOLERANCES["fp32"], LOG_TOLERANCES["fp32"])
# A probability of a photograph that moves by more is harm.
HARM = 1e-2
# Parts of a photograph (left, top, right and bottom, as shares of its sides), as further photographs.
PARTS = ((0, 0, 1, 1), (0, 0, 0.6, 1), (0.4, 0, 1, 1), (0.2, 0.2, 0.8, 0.8))
PROBES = 60

Mutant = tuple[str, Callable[[], object]]


@dataclass(frozen=True)
class Subject:
    """A trained network with its golden images, old and new, and `probes`, which are images of what it knows."""

    network: nn.Module
    preprocessing: Preprocessing
    old: bytes
    images: dict[str, bytes]
    probes: list[bytes]


@dataclass(frozen=True)
class Seen:
    """What a mutant does: the golden images that find it, whether the old checks do, and the harm to the probes."""

    kind: str
    found_by: NDArray[np.bool_]
    by_difference: bool
    by_one_image: bool
    harm: float


def main() -> int:
    """Runs the measurement and returns the exit status: 0 if the set finds every harmful mutant."""
    parser = argparse.ArgumentParser(description="Count the mutants that golden images find.")
    harness.add_models(parser, ["lenet5", "efficientnet_lite0"])
    parser.add_argument("--filters", type=int, default=200, help="changed filters (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=30, help="exchanges of classes (default: %(default)s)")
    parser.add_argument("--choose", type=Path, metavar="FOLDER", help="put images in order instead of the built-in set")
    options = parser.parse_args()
    torch.set_num_threads(machine.cores())
    results: dict[str, Any] = {}
    passed = True
    for name in options.models:
        images = None if options.choose is None else {path.name: path.read_bytes() for path in _files(options.choose)}
        subject = lenet5(images) if name == "lenet5" else efficientnet_lite0(images)
        seen = list(measure(subject, options.filters, options.classes))
        if options.choose is not None:
            show_order(list(subject.images), seen)
        results[name] = summary(seen, len(subject.images))
        passed &= report(name, results[name])
    harness.write_result("golden_set", {"filters": options.filters, "models": results})
    return 0 if passed else 1


def efficientnet_lite0(images: dict[str, bytes] | None) -> Subject:
    """EfficientNet-Lite0 with its ImageNet weights, and photographs that are not in the set."""
    from examples.efficientnet_lite0 import efficientnet_lite0 as build  # noqa: PLC0415

    arguments = flags.export_parser().parse_args(EXPORT)
    spec = preparation.of_network(flags.given(arguments), None)
    files = [*_files(ROOT / PHOTOGRAPHS)]
    probes = [part for path in files for part in parts(path)]
    return Subject(build().eval(), spec, golden.photograph(), images or {**golden_choice.photographs()}, probes)


def lenet5(images: dict[str, bytes] | None) -> Subject:
    """LeNet-5, trained for a few epochs, and held-out digits."""
    network = train.train_lenet5(8).network
    probes = [png for png, _ in digits.held_out_digits()][:PROBES]
    return Subject(network, DIGITS, golden.digit(), images or {**golden_choice.digits()}, probes)


def parts(path: Path) -> Iterator[bytes]:
    """Yields parts of a photograph as PNG."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    for left, top, right, bottom in PARTS:
        width, height = picture.size
        part = picture.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
        buffer = io.BytesIO()
        part.save(buffer, "PNG")
        yield buffer.getvalue()


def measure(subject: Subject, filters: int, classes: int) -> Iterator[Seen]:
    """Yields what each mutant of a network does."""
    made = contract.contract(subject.preprocessing, "float32", 2)
    preprocessor = Preprocessor(made.preprocessing, made.input)
    files = [subject.old, *subject.images.values(), *subject.probes]
    rows = torch.from_numpy(np.stack([preprocessor.encoded(file) for file in files]))
    count = len(subject.images) + 1
    expected = answers(subject.network, rows)
    for kind, change in mutants(subject.network, filters, classes):
        with changed(subject.network, change):
            actual = answers(subject.network, rows)
        found = [refused(*pair, NEW) for pair in zip(actual[:count], expected[:count], strict=True)]
        harm = float(np.abs(actual[count:] - expected[count:]).max())
        yield Seen(kind, np.array(found[1:]), refused(actual[0], expected[0], OLD), found[0], harm)


def mutants(network: nn.Module, filters: int, classes: int) -> Iterator[Mutant]:
    """Yields mutants by their kind; the change of one is made in place. The same network gives the same mutants."""
    random = np.random.default_rng(0)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    *inner, last = layers
    for number in range(filters):
        layer = inner[number % len(inner)]
        kind = str(random.choice(list(CHANGES)))
        one, other = random.choice(len(layer.weight), 2, replace=False)
        yield kind, functools.partial(CHANGES[kind], layer.weight, int(one), int(other))
    outputs = len(last.weight)
    for number in range(classes):
        # Every third one permutes as many classes as a real mistake did: 228 of 1000.
        size = 2 if number % 3 else max(3, outputs * 228 // 1000)
        chosen = random.choice(outputs, size, replace=False).tolist()
        kind = "two classes exchanged" if size == 2 else f"{size} classes permuted"
        yield kind, functools.partial(exchange_classes, last, chosen)


def exchange(values: Tensor, chosen: Sequence[int]) -> None:
    """Moves each of the chosen rows to the place of the next one."""
    values[[*chosen[1:], chosen[0]]] = values[[*chosen]].clone()


def exchange_classes(layer: nn.Linear, chosen: Sequence[int]) -> None:
    """Moves each of the chosen classes to the place of the next one."""
    exchange(layer.weight, chosen)
    exchange(layer.bias, chosen)


CHANGES: dict[str, Callable[[Tensor, int, int], object]] = {
    "a filter of zeros": lambda weight, one, _: weight[one].zero_(),
    "a filter negated": lambda weight, one, _: weight[one].neg_(),
    "a filter 10 % larger": lambda weight, one, _: weight[one].mul_(1.1),
    "two filters exchanged": lambda weight, one, other: exchange(weight, [one, other]),
}


@contextmanager
def changed(network: nn.Module, change: Callable[[], object]) -> Iterator[None]:
    """Changes a network for a while."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with torch.no_grad():
            change()
        yield
    finally:
        network.load_state_dict(before)


def answers(network: nn.Module, rows: Tensor) -> NDArray[np.float64]:
    """Returns the probabilities of each row."""
    with torch.inference_mode():
        logits = torch.cat([network(part) for part in rows.split(8)])
    return softmax(logits.numpy()).astype(np.float64)


def refused(actual: NDArray[np.float64], expected: NDArray[np.float64], allowed: Tolerance) -> bool:
    """Returns whether the self-test refuses a version that gives an image these probabilities."""
    try:
        compare(actual, expected, allowed, "", "")
    except ModelLoadFailed:
        return True
    return False


def show_order(names: Sequence[str], seen: Sequence[Seen]) -> None:
    """Prints the images in the order in which each finds most of what those before it do not find."""
    found = np.stack([one.found_by for one in seen])
    open_, left = np.ones(len(seen), bool), list(range(len(names)))
    while left:
        gains = found[open_][:, left].sum(axis=0)
        best = left.pop(int(gains.argmax()))
        print(f"  {names[best]:<32} finds {found[:, best].sum():>4} of {len(seen)}, {gains.max():>3} of them first")
        open_ &= ~found[:, best]


def summary(seen: Sequence[Seen], images: int) -> dict[str, Any]:
    """Returns the counts, of all mutants and by kind."""
    kinds = sorted({one.kind for one in seen})
    counts = {kind: _counts([one for one in seen if one.kind == kind]) for kind in kinds}
    return {"images": images, "all": _counts(seen), "kinds": counts}


def _counts(seen: Sequence[Seen]) -> dict[str, int]:
    checks: dict[str, Callable[[Seen], bool]] = {
        "one image, difference": lambda one: one.by_difference,
        "one image, logarithm": lambda one: one.by_one_image,
        "built-in set": lambda one: bool(one.found_by.any()),
    }
    harmful = [one for one in seen if one.harm > HARM]
    counts = {"mutants": len(seen), "harmful": len(harmful)}
    for name, finds in checks.items():
        counts[f"{name}: found"] = sum(map(finds, seen))
        counts[f"{name}: harmful passed"] = sum(not finds(one) for one in harmful)
    return counts


def report(name: str, result: dict[str, Any]) -> bool:
    """Prints the counts of a network and returns whether no harmful mutant passes the set."""
    print(f"{name}: {result['images']} images in the set")
    head = ["mutants", *result["all"]]
    rows = [[kind, *counts.values()] for kind, counts in {**result["kinds"], "all": result["all"]}.items()]
    print(harness.table(head, rows))
    missed = result["all"]["built-in set: harmful passed"]
    verdict = harness.verdict(passed=not missed)
    print(f"  {verdict:<6}  {missed} of {result['all']['harmful']} harmful mutants pass the set (target: none)")
    return not missed


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
