"""A few ratios that show whether a change costs something: each to a limit measured beside it.

LeNet-5 over unary gRPC against a server that runs no model, ResNet-18 against plain ONNX Runtime, and the cold start,
the memory and the imports against the same work in a bare process. Each run is added to a history. A ratio is missed if
it is further from the median of the history on such a machine than the history's own noise explains.

    python bench/gate.py
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import harness
import machine
from harness import BENCH, Worker, median
from noise import worst

# For each ratio, whether a larger one is better.
LARGER_IS_BETTER = {"transport": True, "network": True, "cold start": False, "memory": False, "imports": False}


def main() -> int:
    """Runs the benchmark and returns the exit status: 0 if no ratio has become worse."""
    parser = argparse.ArgumentParser(description="Compare ratios to limits with those of earlier runs.")
    harness.add_rounds(parser, 3, 4.0)
    harness.add_repository(parser)
    parser.add_argument("--network", default="resnet18", help="beside plain ONNX Runtime (default: %(default)s)")
    options = parser.parse_args()
    models = ["lenet5", options.network]
    found: defaultdict[str, list[float]] = defaultdict(list)
    with harness.exported(models, options.repository) as root:
        for _ in range(options.rounds):
            for name, ratio in _round(root, models, options.seconds).items():
                found[name].append(ratio)
    ratios = {name: median(values) for name, values in found.items()}
    history = harness.RESULTS / "gate-history.jsonl"
    earlier = _earlier(history)
    passed = True
    for name, ratio in ratios.items():
        past = [entry[name] for entry in earlier if name in entry]
        limit = worst(past, larger_is_better=LARGER_IS_BETTER[name])
        good = limit is None or (ratio >= limit if LARGER_IS_BETTER[name] else ratio <= limit)
        passed = passed and good
        text = f"{len(past)} earlier runs are too few" if limit is None else f"limit {limit:.3f} from {len(past)} runs"
        print(f"  {harness.verdict(passed=good):<6}  {name}: {ratio:.3f} ({text})")
    result = harness.write_result("gate", {"settings": {"rounds": options.rounds}, "rounds": found, "ratios": ratios})
    head = json.loads(result.read_text())
    line = {"commit": head["commit"], "date": head["date"], "machine": _machine(), "ratios": ratios}
    with history.open("a") as file:
        file.write(json.dumps(line) + "\n")
    return 0 if passed else 1


def _round(root: Path, models: Sequence[str], seconds: float) -> dict[str, float]:
    ratios = {}
    with (
        harness.only([*dict.fromkeys(models)], root) as repository,
        Worker("raw.py", root / models[1] / "1" / "model.onnx", "--threads", str(machine.cores())) as raw,
    ):
        plain = raw.ask(batch=1, seconds=seconds)["rate"]
        with harness.serving(repository) as server:
            started, _ = server.wait_for(r"cnnserve\.app: ready\b")
            for name, model, limit in (("transport", models[0], _empty(root, seconds)), ("network", models[1], plain)):
                request = harness.infer_request(harness.manifest_of(root, model), model)
                bodies = [request.SerializeToString()]
                ratios[name] = harness.load(server.address, bodies, in_flight=16, seconds=seconds)["rate"] / limit
            ratios["memory"] = machine.memory_mib(server.pid) / machine.memory_mib(raw.pid)
    folders = [str(root / model / "1") for model in models]
    ratios["cold start"] = started / _seconds([str(BENCH / "bare_start.py"), str(machine.cores()), *folders])
    ratios["imports"] = _seconds(["-c", "import cnnserve.app"]) / _seconds(["-c", "import grpc, onnxruntime"])
    return ratios


def _empty(root: Path, seconds: float) -> float:
    """Returns the requests/s of a server that runs no model."""
    request = harness.infer_request(harness.manifest_of(root, "lenet5"), "lenet5")
    with harness.empty_server() as server:
        return harness.load(server.address, [request.SerializeToString()], in_flight=16, seconds=seconds)["rate"]


def _seconds(words: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def _machine() -> list[object]:
    about = machine.describe()
    return [about["cpu"], about["cores"]]


def _earlier(history: Path) -> list[dict[str, float]]:
    """Returns the ratios of earlier runs on such a machine."""
    if not history.is_file():
        return []
    lines = map(json.loads, history.read_text().splitlines())
    return [line["ratios"] for line in lines if line["machine"] == _machine()]


if __name__ == "__main__":
    sys.exit(main())
