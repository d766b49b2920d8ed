"""Compares `cnnserve classify FOLDER` with a bare loop over the same files, in images per second.

The images are 10,000 files of scanned digits, the model is LeNet-5. Server, client and loop run on this machine. In
each round, client and loop run one after the other, each in a process of its own. The ratio of a round compares the
times of these processes from start to exit; the result is the median of the ratios. The ratio to the loop without its
start is printed, too.

    python bench/classify_folder.py --images 10000 --rounds 5
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
from harness import Server, median

from cnnserve.tools.load.clocks import cpu_seconds
from cnnserve_export.digits import held_out_digits, training_digits

TARGET = 0.5
REPOSITORY = harness.BENCH.parent / "model_repo"


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if the target was reached."""
    parser = argparse.ArgumentParser(description="Compare cnnserve classify with a bare loop over the same files.")
    parser.add_argument("--images", type=int, default=10_000, help="number of files (default: %(default)s)")
    harness.add_rounds(parser, 5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as name, harness.serving(REPOSITORY) as server:
        folder, output = Path(name, "digits"), Path(name, "labels.jsonl")
        folder.mkdir()
        for number, (data, _) in zip(
            range(options.images), itertools.cycle(training_digits() + held_out_digits()), strict=False
        ):
            (folder / f"{number:05}.png").write_bytes(data)
        _client(server, folder, output), _bare(folder)
        rounds = [_round(server, folder, output) for _ in range(options.rounds)]
    ratio = median([cells["bare_s"] / cells["client_s"] for cells in rounds])
    against_loop = median([cells["bare_loop_s"] / cells["client_s"] for cells in rounds])
    rows = [
        [key, f"{median([options.images / cells[f'{key}_s'] for cells in rounds]):,.0f}"]
        for key in ("client", "bare", "bare_loop")
    ]
    print(harness.table(("", "images/s"), rows))
    cpu = {key: median([cells[key] for cells in rounds]) / options.images * 1e6 for key in ("client_cpu", "server_cpu")}
    print(f"CPU time per image: client {cpu['client_cpu']:.0f} us, server {cpu['server_cpu']:.0f} us")
    print(f"ratio to the loop without its start: {against_loop:.2f}")
    print(f"  {harness.verdict(passed=ratio >= TARGET):<6}  at least {TARGET} times the bare loop: {ratio:.2f}")
    result = {"images": options.images, "rounds": rounds, "ratio": ratio, "ratio_to_loop_alone": against_loop}
    harness.write_result("classify_folder", result)
    return 0 if ratio >= TARGET else 1


def _round(server: Server, folder: Path, output: Path) -> dict[str, float]:
    client, classes = _client(server, folder, output)
    bare, expected = _bare(folder)
    wrong = [name for name, index in expected.items() if classes.get(name) != index]
    # Decoders may differ in the last bit. This can change the class of a digit with two almost equal probabilities.
    if len(classes) != len(expected) or len(wrong) > len(expected) / 1000:
        raise SystemExit(f"{len(wrong)} of {len(expected)} images have other classes than in the bare loop")
    return client | bare


def _client(server: Server, folder: Path, output: Path) -> tuple[dict[str, float], dict[str, int]]:
    words = ["classify", folder, "--model", "lenet5", "--top-k", "1", "--address", server.address, "--output", output]
    command = [sys.executable, "-m", "cnnserve", *map(str, words)]
    server_before, started = cpu_seconds(server.pid), time.perf_counter()
    children_before = os.times()
    status = subprocess.run(command, timeout=600, check=False).returncode
    seconds, children = time.perf_counter() - started, os.times()
    own = (
        children.children_user
        + children.children_system
        - children_before.children_user
        - children_before.children_system
    )
    if status:
        raise SystemExit(f"cnnserve classify exited with status {status}")
    records = [json.loads(line) for line in output.read_text().splitlines()]
    classes = {Path(record["file"]).name: int(record["classes"][0]["index"]) for record in records}
    server_cpu = cpu_seconds(server.pid) - server_before
    return {"client_s": seconds, "client_cpu": own, "server_cpu": server_cpu}, classes


def _bare(folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    command = [sys.executable, harness.BENCH / "bare_classify.py", folder, REPOSITORY / "lenet5" / "1" / "model.onnx"]
    started = time.perf_counter()
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, timeout=600, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return {"bare_s": time.perf_counter() - started, "bare_loop_s": answer["seconds"]}, answer["classes"]


if __name__ == "__main__":
    sys.exit(main())
