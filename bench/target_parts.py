"""The parts of `targets.py` that measure one model at a time, and what they share: servers, plain layouts, verdicts."""

import contextlib
import functools
import importlib.util
import io
import itertools
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import ideal_queue
from harness import Server, Worker, median
from layouts import IN_FLIGHT, Plain, plain_layouts, plain_rate, plain_session, zeros
from machine import cores
from PIL import Image

from cnnserve.batching.percentile import percentile
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.tools.load.arrivals import poisson
from cnnserve.wire import classifier_pb2

CLASSIFY = "cnnserve.v1.Classifier/Classify"
KINDS = ("default", "automatic")
# The name of the comparison that a layout must win.
FULL = "16 in flight"
# Plain layouts within this of the best one are measured again in every round, at most so many.
_NEAR, _MOST = 0.1, 3
_PHOTOS = ((500, 375), (640, 427))
_RUN_BATCHES = (1, 2, 4, 8, 16)
_LOAD = 0.8
_WARM_UP_S = 1.0

Cells = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Options:
    """How often and for how long to measure; times are in seconds. `open_seconds`: each open loop."""

    rounds: int
    seconds: float
    screen_seconds: float
    open_seconds: float

    @property
    def warm_up_s(self) -> float:
        """The time of load before each cell."""
        return min(_WARM_UP_S, self.seconds)


@dataclass
class Outcome:
    """What a part found: cells for the result file, and each target with what was reached and whether it was met.

    `gains`: the automatic layout beside the default one by what was measured; 1.03 is 3 % better.
    """

    cells: dict[str, Any] = field(default_factory=dict)
    verdicts: list[tuple[str, str, bool]] = field(default_factory=list)
    gains: dict[str, float] = field(default_factory=dict)

    def compare(self, what: str, served: Mapping[str, Sequence[Mapping[str, float]]], key: str = "rate") -> None:
        """Notes the gain of the automatic layout, if it was measured. `key`: a rate, or a latency."""
        if "automatic" in served:
            share = ratio(served["automatic"], [cell[key] for cell in served["default"]], key)
            self.gains[what] = share if key == "rate" else 1 / share

    def check(self, what: str, reached: float, *, least: float = -math.inf, most: float = math.inf) -> None:
        """Notes a target."""
        limit = f">= {least:g}" if least > -math.inf else f"<= {most:g}"
        self.verdicts.append((f"{what} {limit}", f"{reached:.3f}", least <= reached <= most))


class Model:
    """A model with its servers by kind of layout."""

    def __init__(self, name: str, root: Path, servers: Mapping[str, Server], options: Options) -> None:
        self.name = name
        self.servers = servers
        self.options = options
        self.manifest = harness.manifest_of(root, name)
        self.onnx = root / name / "1" / self.manifest.onnx.file
        request = harness.infer_request(self.manifest, name)
        for server in servers.values():
            harness.check_answer(server, request)
        self.body = request.SerializeToString()

    @functools.cached_property
    def screen(self) -> dict[Plain, float]:
        """The images/s of all plain layouts."""
        return screen(self.onnx, self.options)

    def load(self, kind: str, *, in_flight: int = IN_FLIGHT, photo: bytes = b"") -> dict[str, float]:
        """Returns one cell of a server: with tensors, or with the Classify request `photo`."""
        server, options = self.servers[kind], self.options
        return harness.load(
            server.address,
            [photo or self.body],
            method=CLASSIFY if photo else harness.INFER,
            in_flight=in_flight,
            seconds=options.seconds,
            server_pid=server.pid,
            warm_up_s=options.warm_up_s,
        )


@contextlib.contextmanager
def serving(name: str, root: Path, kinds: Sequence[str]) -> Iterator[tuple[dict[str, Server], str]]:
    """Yields the servers of a model by kind of layout, and the layout that was found."""
    with contextlib.ExitStack() as stack:
        servers = {"default": stack.enter_context(harness.serving(stack.enter_context(harness.only([name], root))))}
        if "automatic" not in kinds:
            yield servers, ""
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnserve-bench-")))
        copy = shutil.copytree(root / name, folder / "models" / name)
        with (copy / "config.pbtxt").open("a") as config:
            # As with --auto-layout, but also for models that are so small that the server would not look.
            config.write('\nparameters { key: "cnnserve.layout" value { string_value: "auto" } }\n')
        flags = ("--layout-cache", str(folder / "cache"))
        with harness.serving(folder / "models", *flags) as finder:
            layout = finder.wait_for(r"version 1: (.+) gives")[1][1]
        servers["automatic"] = stack.enter_context(harness.serving(folder / "models", *flags))
        yield servers, layout


def screen(onnx: Path, options: Options) -> dict[Plain, float]:
    """Returns the images/s of all plain layouts of a file."""
    return {layout: plain_rate(onnx, layout, options.screen_seconds) for layout in plain_layouts(cores())}


def near_best(rates: Mapping[Plain, float]) -> list[Plain]:
    """Returns the plain layouts that may be the best, best first."""
    ordered = sorted(rates, key=lambda layout: -rates[layout])
    return [layout for layout in ordered if rates[layout] >= (1 - _NEAR) * rates[ordered[0]]][:_MOST]


def against_plain(
    model: Model, onnx: Path, near: Sequence[Plain], photo: bytes = b""
) -> tuple[Cells, dict[Plain, list[float]]]:
    """Measures the servers with 16 in flight and plain layouts of `onnx` in turns, and returns the cells of both."""
    served: Cells = {kind: [] for kind in model.servers}
    plain: dict[Plain, list[float]] = {layout: [] for layout in near}
    # Each server is next to a plain layout.
    turns = [turn for pair in itertools.zip_longest(served, near) for turn in pair if turn is not None]
    for number in range(model.options.rounds):
        for turn in harness.in_turn(turns, number):
            if isinstance(turn, str):
                served[turn].append(model.load(turn, photo=photo))
            else:
                plain[turn].append(plain_rate(onnx, turn, model.options.seconds))
    return served, plain


def ratio(cells: Sequence[Mapping[str, float]], limits: Sequence[float], key: str = "rate") -> float:
    """Returns the median ratio of cells to limits of the same rounds."""
    return median([cell[key] / limit for cell, limit in zip(cells, limits, strict=True)])


def layout(model: Model) -> Outcome:
    """16 in flight beside the best plain layout."""
    outcome = Outcome()
    served, plain = against_plain(model, model.onnx, near_best(model.screen))
    best = max(plain, key=lambda each: median(plain[each]))
    for kind in served:
        outcome.check(f"{kind}, 16 in flight / best plain", ratio(served[kind], plain[best]), least=0.97)
    if "automatic" in served:
        default = [cell["p99_ms"] for cell in served["default"]]
        outcome.check("automatic, p99 / default's", ratio(served["automatic"], default, "p99_ms"), most=1.2)
    outcome.compare(FULL, served)
    outcome.cells = {"screen": _named(model.screen), "plain": _named(plain), "best": str(best), "served": served}
    return outcome


def single(model: Model) -> Outcome:
    """1 in flight beside plain ONNX Runtime with all cores."""
    outcome = Outcome()
    cells: Cells = {name: [] for name in (*model.servers, "plain")}
    with Worker("raw.py", model.onnx, "--threads", str(cores())) as raw:
        for number in range(model.options.rounds):
            for name in harness.in_turn(cells, number):
                if name == "plain":
                    cells[name].append(raw.ask(batch=1, seconds=model.options.seconds))
                else:
                    cells[name].append(model.load(name, in_flight=1))
    plain = [cell["p50_ms"] for cell in cells["plain"]]
    for kind in model.servers:
        above = [cell["p50_ms"] - ms for cell, ms in zip(cells[kind], plain, strict=True)]
        most = 0.05 * median(plain) + 1
        outcome.verdicts.append(
            (f"{kind}, 1 in flight: ms above plain <= {most:.2f}", f"{median(above):.2f}", median(above) <= most)
        )
    outcome.compare("1 in flight", cells, "p50_ms")
    outcome.cells = cells
    return outcome


def jpeg(model: Model) -> Outcome:
    """JPEGs, 16 in flight, beside runs and decoding that share the cores without loss."""
    outcome = Outcome()
    near = near_best(model.screen)[:1]
    for size in _PHOTOS:
        data = photo(size)
        request = classifier_pb2.ClassifyRequest(model=model.name, images=[classifier_pb2.Image(encoded=data)])
        decode_s = _decoding_s(model, data)
        served, plain = against_plain(model, model.onnx, near, request.SerializeToString())
        limits = [1 / (1 / rate + decode_s / cores()) for rate in plain[near[0]]]
        name = f"JPEG {size[0]}x{size[1]}"
        for kind in served:
            outcome.check(f"{kind}, {name} / (plain + decoding)", ratio(served[kind], limits), least=0.93)
        outcome.compare(name, served)
        outcome.cells[name] = {"decode_ms": decode_s * 1e3, "plain": _named(plain), "served": served}
    return outcome


def open_loop(model: Model) -> Outcome:
    """p99 / p50 at 80 % load beside an ideal queue with the same arrivals."""
    outcome, options = Outcome(), model.options
    seconds, warm_up_s = options.open_seconds, options.warm_up_s
    rate = _LOAD * model.load("default")["rate"]
    if not rate:
        raise SystemExit(f"{model.name} answered nothing in {options.seconds:g} s; raise --seconds")
    served: list[float] = []
    ideal: list[float] = []
    for seed in range(options.rounds):
        times = ideal_queue.RunTimes(_run_times(model), seed)
        address = model.servers["default"].address
        served += harness.open_load(address, [model.body], rate=rate, seed=seed, seconds=seconds, warm_up_s=warm_up_s)
        end = warm_up_s + seconds
        arrivals = [*itertools.takewhile(lambda at, end=end: at <= end, poisson(rate, seed))]
        simulated = ideal_queue.latencies(arrivals, times, model.manifest.max_batch_size)
        ideal += [late for at, late in zip(arrivals, simulated, strict=True) if at > warm_up_s]
    spreads = {name: _spread(values) for name, values in (("served", served), ("ideal", ideal))}
    worse = spreads["served"]["p99_over_p50"] / spreads["ideal"]["p99_over_p50"]
    outcome.check(f"default, p99/p50 at {_LOAD:.0%} load / ideal queue's", worse, most=1.15)
    outcome.cells = {"rate": rate, "requests": len(served), "refused": served.count(math.inf), **spreads}
    return outcome


def _spread(latencies: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies)
    p50, p99 = percentile(ordered, 50), percentile(ordered, 99)
    return {"p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "p99_over_p50": p99 / p50}


def _run_times(model: Model) -> dict[int, list[float]]:
    """Returns the times of plain runs on all cores in s, by batch size."""
    session = plain_session(model.onnx, cores(), spin=True)
    found: dict[int, list[float]] = {}
    for batch in _RUN_BATCHES:
        rows = zeros(session, batch)
        session.run(rows)
        times = found.setdefault(batch, [])
        end = time.perf_counter() + model.options.screen_seconds
        while time.perf_counter() < end or len(times) < 3:
            began = time.perf_counter()
            session.run(rows)
            times.append(time.perf_counter() - began)
    return found


def photo(size: tuple[int, int]) -> bytes:
    """Returns a JPEG of a photograph."""
    # Importing scikit-learn takes longer than all else here.
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / "china.jpg") as image:
        buffer = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _decoding_s(model: Model, data: bytes) -> float:
    """Returns the CPU time from the bytes of a JPEG to a row, with the server's own preprocessing."""
    spec = model.manifest.preprocessing
    assert spec is not None
    preprocessor = Preprocessor(spec, model.manifest.input)
    times = []
    for _ in range(20):
        began = time.thread_time()
        preprocessor.encoded(data)
        times.append(time.thread_time() - began)
    return median(times)


def _named(cells: Mapping[Plain, Any]) -> dict[str, Any]:
    return {" ".join(map(str, plain)): values for plain, values in cells.items()}


MODEL_PARTS: dict[str, Callable[[Model], Outcome]] = {
    "layout": layout,
    "jpeg": jpeg,
    "single": single,
    "open": open_loop,
}
