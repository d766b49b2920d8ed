"""The parts that measure plain ONNX Runtime and the server. Each yields its steps, the most telling ones first."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import harness
import layouts
import machine
from harness import Worker
from sending import send
from setting import FREE, Layout, Setting, copy
from steps import Result, Step

from cnnserve.tools.bench.cells import Load

# Beside the measurement: the warm-up, the start of the load processes, and now and then that of a server.
_STEP_S = 3.0
_TAIL_SHARE = 0.8
_TAIL_IMAGES = 2


def plain(setting: Setting) -> Iterator[Step]:
    """Plain ONNX Runtime with IO binding and CUDA graphs at each batch size."""

    def measure(model: str, loops: int, batch: int) -> Result:
        words = (setting.onnx_file(model), "--provider", setting.kind, "--loops", str(loops))
        worker = setting.held.get(f"plain {model} {loops}", lambda: Worker("gpu/plain_worker.py", *words))
        return dict(worker.ask(batch=batch, seconds=setting.size.plain_seconds))

    for loops in setting.size.plain_loops:
        for precision, model in setting.precisions.items():
            for batch in reversed(setting.size.plain_batches):
                key = f"{precision}, {loops} loop{'s' * (loops > 1)}, batch {batch}"
                yield Step(key, 2 * setting.size.plain_seconds, partial(measure, model, loops, batch))


def instances(setting: Setting) -> Iterator[Step]:
    """The server in each layout. The parts after this one use the best of them."""
    model = next(iter(setting.precisions.values()))
    images = setting.size.layout_images

    def measure(layout: Layout) -> Result:
        return _closed(setting, layout, model, "grpc", images)

    for layout in setting.size.layouts:
        yield Step(str(layout), setting.size.seconds + _STEP_S, partial(measure, layout))


def throughput(setting: Setting) -> Iterator[Step]:
    """Every transport with every size of a request, in closed loops."""
    for precision, model in setting.precisions.items():
        yield from _closed_loops(setting, model, f"{precision}, ")


def _closed_loops(setting: Setting, model: str, prefix: str = "") -> Iterator[Step]:
    """Every transport with every size of a request to one model. `prefix` begins the names of the steps."""
    size = setting.size
    for images in size.images:
        for transport in size.transports:
            run = partial(_closed, setting, setting.best_layout, model, transport, images)
            yield Step(f"{prefix}{transport}, {_of(images)}", size.seconds + _STEP_S, run)


def tail(setting: Setting) -> Iterator[Step]:
    """Latencies in open loops with Poisson arrivals, at 80 % of the rate that the closed loop reached."""
    size = setting.size

    def measure(precision: str, model: str, images: int) -> Result:
        server = setting.server(setting.best_layout)
        key = f"{precision}, grpc, {_of(images)}"
        top = setting.results.get("throughput", {}).get(key, {})
        if "requests_per_s" not in top:
            top = _closed(setting, setting.best_layout, model, "grpc", images)
        rate = _TAIL_SHARE * float(top["requests_per_s"])
        return send(server, model, Load(rate=rate), transport="grpc", images=images, seconds=size.tail_seconds)

    for images in size.images[:_TAIL_IMAGES]:
        for precision, model in setting.precisions.items():
            run = partial(measure, precision, model, images)
            yield Step(f"{precision}, {_of(images)}", size.tail_seconds + _STEP_S, run)


def ceiling(setting: Setting) -> Iterator[Step]:
    """The server with a model that costs nothing: the largest rate that its front end allows."""
    return _closed_loops(setting, FREE)


def cores(setting: Setting) -> Iterator[Step]:
    """The CPU cores of this machine: the layout that `cnnserve tune` finds, the default one, and plain layouts."""
    size = setting.size
    root, onnx = setting.output / "cores", setting.onnx_file(setting.network)

    def tune() -> Result:
        copy(setting.models / setting.network, root / "tuned" / setting.network, "")
        words = [str(root / "tuned" / setting.network), "--budget", f"{size.tune_s}s"]
        command = [sys.executable, "-m", "cnnserve", "tune", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return {"said": done.stdout.splitlines()}

    def served(name: str) -> Result:
        folder = root / name
        if name == "default":
            copy(setting.models / setting.network, folder / setting.network, "")
        server = setting.held.get(f"cores {name}", lambda: harness.serving(folder))
        load = Load(layouts.IN_FLIGHT)
        return send(server, setting.network, load, transport="grpc", images=1, seconds=size.seconds, processes=1)

    def one_plain(layout: layouts.Plain) -> Result:
        setting.held.drop()
        return {"images_per_s": layouts.plain_rate(onnx, layout, size.plain_seconds)}

    yield Step("tune", size.tune_s + 1.0, tune)
    for name in ("tuned", "default"):
        yield Step(f"served, {name}", size.seconds + _STEP_S, partial(served, name))
    threads = machine.cores()
    for layout in layouts.plain_layouts(threads):
        loops, width, batch = layout
        # Loops share the threads of a session, and each adds its own. Fewer threads than cores are left out.
        if loops + width - 1 == threads:
            run = partial(one_plain, layout)
            yield Step(f"plain, {loops} loops of {width} threads, batch {batch}", size.plain_seconds + 1.0, run)


def _closed(setting: Setting, layout: Layout, model: str, transport: str, images: int) -> Result:
    load = Load(max(2, setting.size.under_way // images))
    server = setting.server(layout)
    return send(server, model, load, transport=transport, images=images, seconds=setting.size.seconds)


def _of(images: int) -> str:
    return f"{images} image{'s' * (images > 1)}"
