"""`make pictures`: draws the panels of the Grafana dashboard, as SVG, from what a real Prometheus has scraped.

A server of the repository's LeNet-5 gets a load that changes, and Prometheus (Debian's package) scrapes it every
second. The expressions are those of `deploy/observability/dashboard.json`; only the drawing is not Grafana's.
"""

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from PIL import Image

from cnnserve.tools.bench.serving import serving
from cnnserve_client import Client, CnnserveError

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(__file__).with_name("dashboard.svg")
DASHBOARD = json.loads((ROOT / "deploy" / "observability" / "dashboard.json").read_text())
ROWS = ("Requests", "Where the time goes", "Batching", "Drift")
LOAD_S = 50
COLUMNS = 4
UNITS = {
    "s": (1000, "ms"),
    "percentunit": (100, "%"),
    "reqps": (1, "req/s"),
    "bytes": (2**-20, "MiB"),
    "short": (1, ""),
}


def main() -> int:
    """Writes the picture."""
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        print("needs prometheus: apt-get install prometheus", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnnserve-dashboard-")))
        server = stack.enter_context(serving(ROOT / "model_repo", ""))
        address = stack.enter_context(scraping(folder, prometheus, server.http))
        load(server.grpc)
        # The last scrape.
        time.sleep(2)
        draw(address)
    print(TARGET)
    return 0


@contextlib.contextmanager
def scraping(folder: Path, prometheus: str, target: str) -> Iterator[str]:
    """Yields the address of a Prometheus that scrapes `target` every second."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = (
        "global: {scrape_interval: 1s}\n"
        f'scrape_configs: [{{job_name: cnnserve, static_configs: [{{targets: ["{target}"]}}]}}]\n'
    )
    (folder / "prometheus.yaml").write_text(config)
    flags = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([prometheus, *flags, f"--web.listen-address={address}"], stderr=log)
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def load(address: str) -> None:
    """Asks for LeNet-5 from 1, then 4, then 8 threads. Some requests name no model, and some have too little time.

    In the last third, the images are turned, so that the model is less sure.
    """
    straight = [_digit(angle) for angle in range(-15, 16, 3)]
    turned = [_digit(angle) for angle in range(30, 160, 10)]
    started = time.monotonic()

    def ask(number: int) -> None:
        begin = 0 if number < 1 else LOAD_S / 3 if number < 4 else LOAD_S * 2 / 3
        chosen = random.Random(number)
        with Client(address) as client:
            time.sleep(max(0.0, started + begin - time.monotonic()))
            while (passed := time.monotonic() - started) < LOAD_S:
                images = chosen.choices(straight if passed < LOAD_S * 2 / 3 else turned, k=chosen.randint(1, 4))
                model = "lenet5" if chosen.random() < 0.98 else "unknown"
                with contextlib.suppress(CnnserveError):
                    client.classify(images, model=model, timeout_s=0.002 if chosen.random() < 0.02 else 10)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _digit(angle: int) -> bytes:
    """Returns the golden image, turned, as a PNG."""
    buffer = io.BytesIO()
    with Image.open(ROOT / "model_repo" / "lenet5" / "1" / "golden.png") as image:
        image.rotate(angle, Image.Resampling.BILINEAR).save(buffer, "PNG")
    return buffer.getvalue()


def draw(address: str) -> None:
    """Draws the panels of the wanted rows."""
    panels = list(_panels())
    # The same file for the same values.
    mpl.rcParams |= {"svg.hashsalt": "cnnserve", "svg.fonttype": "none", "font.size": 8, "font.family": "sans-serif"}
    height = (len(panels) + COLUMNS - 1) // COLUMNS
    figure, axes = plt.subplots(height, COLUMNS, figsize=(4 * COLUMNS, 2.4 * height), layout="constrained")
    for panel, one in zip(panels, axes.flat, strict=False):
        _draw(panel, one, address)
    for unused in axes.flat[len(panels) :]:
        unused.set_axis_off()
    figure.savefig(TARGET, metadata={"Date": None, "Creator": None})


def _panels() -> Iterator[dict[str, Any]]:
    row = ""
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        elif row in ROWS:
            yield panel


def _draw(panel: dict[str, Any], axes: Axes, address: str) -> None:
    factor, unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    axes.set_title(panel["title"], loc="left", fontweight="bold")
    if panel["type"] == "heatmap":
        _draw_heatmap(panel, axes, address)
        return
    for target in panel["targets"]:
        for labels, times, values in _series(address, target["expr"]):
            name = re.sub(r"{{(\w+)}}", lambda found, own=labels: own.get(found[1], ""), target["legendFormat"])
            axes.plot(times, [value * factor for value in values], label=name, linewidth=1)
    axes.grid(alpha=0.3)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.set_ylabel(unit)
    if axes.lines:
        axes.legend(fontsize=6, loc="upper left", ncols=2)


def _draw_heatmap(panel: dict[str, Any], axes: Axes, address: str) -> None:
    """Draws the rate in each bucket, which is that up to its bound less that up to the bound below."""
    (target,) = panel["targets"]
    found = sorted(_series(address, target["expr"]), key=lambda one: float(one[0]["le"]))
    bounds, times = [labels["le"] for labels, _, _ in found], found[0][1]
    rates = [[0.0] * len(times), *(values for _, _, values in found)]
    cells = [[own - below for below, own in zip(*pair, strict=True)] for pair in itertools.pairwise(rates)]
    axes.pcolormesh(times, range(len(bounds)), cells, cmap="Blues", shading="nearest")
    axes.set_yticks(range(len(bounds)), bounds, fontsize=6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))


def _series(address: str, expression: str) -> Iterator[tuple[dict[str, str], list[float], list[float]]]:
    for variable in ("job", "instance", "model", "version"):
        expression = expression.replace(f"${variable}", ".*")
    now = time.time()
    query = {"query": expression.replace("$__rate_interval", "5s"), "start": now - LOAD_S, "end": now, "step": 1}
    url = f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url) as answer:
        found = json.load(answer)["data"]["result"]
    for one in found:
        times = [moment - now + LOAD_S for moment, _ in one["values"]]
        yield one["metric"], times, [float(value) for _, value in one["values"]]


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
