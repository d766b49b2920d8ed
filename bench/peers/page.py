"""Writes the figures of docs/performance.md from the newest results, and draws their pictures.

    python bench/peers/page.py

Between `<!-- NAME: from bench/results -->` and `<!-- end of NAME -->` the page belongs to this script. A test compares
the committed page with the committed results.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from peers import report, summary
from peers.summary import EMPTY

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results"
TITLES = {
    "alexnet": "AlexNet",
    "googlenet": "GoogLeNet",
    "lenet5": "LeNet-5",
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
}
_BLOCK = re.compile(r"<!-- ([\w-]+): from bench/results -->\n.*?<!-- end of \1 -->", re.DOTALL)
_KINDS = {"tensor": "Tensors", "image": "JPEGs"}
# Characters of a reason why a server did not run.
_REASON = 200

Result = dict[str, Any]


def main() -> int:
    """Writes page and pictures and returns the exit status."""
    argparse.ArgumentParser(description="Write the figures of docs/performance.md from bench/results.").parse_args()
    PAGE.write_text(rendered(PAGE.read_text()))
    for model, path in pictures().items():
        from peers import picture  # noqa: PLC0415 - imports matplotlib, which the test of the text does not need

        picture.write(path, TITLES[model], newest("peers")["models"][model]["results"])
    return 0


def rendered(page: str) -> str:
    """Returns the page with the figures of the newest results."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name}: from bench/results -->\n\n{BLOCKS[name]()}\n\n<!-- end of {name} -->"

    return _BLOCK.sub(block, page)


def pictures() -> dict[str, Path]:
    """Returns the file of each picture, by model."""
    models = [model for result in _results("peers")[-1:] for model in result["models"]]
    return {model: ROOT / "docs" / "pictures" / f"peers-{model}.svg" for model in models}


def newest(benchmark: str) -> Result:
    """Returns the newest result of a benchmark."""
    return _results(benchmark)[-1]


def _results(benchmark: str) -> list[Result]:
    """Returns all results of a benchmark, the oldest first."""
    files = sorted(RESULTS.glob(f"{benchmark}-[0-9]*.json"))
    return [{"file": file.name} | json.loads(file.read_text()) for file in files]


def _peers() -> str:
    if not _results("peers"):
        return "No run is kept in `bench/results/` yet."
    result = newest("peers")
    settings, machine = result["settings"], result["machine"]
    parts = [
        _wrapped(
            f"Commit {result['commit']}, {machine['cores']} cores ({machine['cpu']}), {settings['rounds']} "
            f"{'rounds' if settings['rounds'] > 1 else 'round'} of {settings['seconds']:g} s, medians "
            f"(`bench/results/{result['file']}`). {_versions(result)}"
        )
    ]
    for model, measured in result["models"].items():
        parts += [f"### {TITLES[model]}", f"![{TITLES[model]}: images/s of each server](pictures/peers-{model}.svg)"]
        for kind, title in _KINDS.items():
            if table := _peers_table(measured["results"], kind, settings["in_flight"]):
                parts += [f"{title}:", table]
        parts.append(_servers_table(measured["results"]))
        parts += [f"{name} did not run: `{reason[:_REASON]}`" for name, reason in measured["not_run"].items()]
    return "\n\n".join(parts)


def _versions(result: Result) -> str:
    servers = result["servers"]
    # The first package is the server itself.
    names = [f"{name} {next(iter(versions.values()))}" for name, versions in servers.items()]
    runtime = result["versions"]["onnxruntime"]
    others = {
        name: versions["onnxruntime"]
        for name, versions in servers.items()
        if versions.get("onnxruntime", runtime) != runtime
    }
    same = f"ONNX Runtime {runtime}" + "".join(f" ({name}: {version})" for name, version in others.items())
    return f"{', '.join(names)}; {same}."


def _peers_table(results: Mapping[str, Sequence[Any]], kind: str, in_flight: Sequence[int]) -> str:
    rows = [
        [str(count), *report.cells(row)]
        for count in in_flight
        for row in summary.rows(results, kind, count)
        if row.server != EMPTY or kind == "tensor"
    ]
    return _table(("in flight", *report.HEAD), rows) if rows else ""


def _servers_table(results: Mapping[str, Sequence[Any]]) -> str:
    rows = [
        [
            server,
            f"{numbers['start_s']:.2f}" if "start_s" in numbers else "-",
            f"{numbers['memory_mib']:.0f}",
            f"{numbers['processes']:.0f}",
        ]
        for server, numbers in summary.servers(results).items()
    ]
    return _table(("server", "start to the first right response, s", "memory after the load, MiB", "processes"), rows)


def _throughput() -> str:
    """The two newest runs of throughput.py: ranges."""
    runs = [result["models"] for result in _results("throughput")[-2:]]
    rows = []
    for model, title in TITLES.items():
        if model == "lenet5" or not all(model in run for run in runs):
            continue
        summaries = [run[model]["summary"] for run in runs]
        full = [each["ratios"]["served 16"] for each in summaries]
        plain = [each["cells"]["raw 1"]["p50_ms"] for each in summaries]
        rows.append(
            [
                title,
                _range([each["of_raw_1"] for each in full]),
                _range([each["of_raw_best"] for each in full]),
                _range([each["p99_over_p50"] for each in full]),
                f"{_range([each['ratios']['over_raw_ms'] for each in summaries], 1)} ms (of {_range(plain, 0)} ms)",
            ]
        )
    head = ("network", "16 in flight: images/s relative to plain batch 1", "to plain at its best batch", "p99 / p50")
    return _table((*head, "1 in flight: latency beyond plain's"), rows)


def _transport() -> str:
    median = newest("transport")["cells"]
    rows = []
    for count in (1, 16, 64):
        own, empty = median[f"core {count}"], median[f"empty {count}"]
        rows.append(
            [
                str(count),
                f"{own['rate']:,.0f}",
                f"{own['rate'] / empty['rate']:.2f}",
                f"{own['server_cpu_us']:.0f} µs",
                f"{own['server_cpu_us'] / empty['server_cpu_us']:.2f}",
                f"{own['p50_ms']:.2f} ms",
            ]
        )
    head = ("in flight", "requests/s", "relative to that server", "server CPU a request", "relative to that server")
    return _table((*head, "p50"), rows)


def _fairness() -> str:
    now, before = newest("fairness"), newest("fairness-before")
    kept = now["kept"].values()
    return _wrapped(
        f"With 16 callers each of two kinds of traffic at the same time, on {now['machine']['cores']} cores that also "
        f"run the callers, each kind keeps {min(kept):.2f} to {max(kept):.2f} of what it reaches alone. "
        "Beside all three kinds, a health check has a p99 of "
        f"{now['health_p99_ms']:.0f} ms; it was {before['health_p99_ms']:.0f} ms "
        "with `grpc.aio` (`bench/fairness.py`)."
    )


def _cold_start() -> str:
    result = newest("cold_start")
    names = " and ".join(TITLES[model] for model in result["models"])
    return _wrapped(
        f"From the start of the process to READY, with {names}, cnnserve takes {result['ratio']:.1f} times as long as "
        "a bare script that opens the same files and runs them as often (`bench/cold_start.py`)."
    )


def _classify_folder() -> str:
    result = newest("classify_folder")
    ratios = [each["bare_s"] / each["client_s"] for each in result["rounds"]]
    return _wrapped(
        f"{result['images']:,} scanned digits from a folder through LeNet-5, server and client on one machine with "
        f"{result['machine']['cores']} cores: `cnnserve classify` reaches {min(ratios):.2f} to {max(ratios):.2f} times "
        "the images/s of a bare script that reads, decodes and runs the same files in batches of 32 in its own process "
        "(`bench/classify_folder.py`)."
    )


def _int8() -> str:
    random, digits = newest("int8")["models"], newest("int8_digits")["models"]
    rows = [_int8_row(f"{TITLES[model]}, random weights", random[model]) for model in random]
    rows += [_int8_row(f"{TITLES[model]}, scanned digits", digits[model]) for model in digits]
    head = ("network", "batch 1, batch 8", "same most probable class as fp32", "accuracy (fp32)", "largest difference")
    return _table(head, rows)


def _int8_row(title: str, measured: Result) -> list[str]:
    agreement = measured["agreement"]
    known = agreement["accuracy"] is not None
    return [
        title,
        ", ".join(f"{measured['speed_up'][batch]:.2f} ×" for batch in ("1", "8")),
        f"{agreement['top1'] * agreement['images']['count']:.0f} of {agreement['images']['count']}",
        f"{100 * agreement['accuracy']:.2f} % ({100 * agreement['fp32_accuracy']:.2f} %)" if known else "",
        f"{agreement['largest_difference']:.1e}",
    ]


BLOCKS: dict[str, Callable[[], str]] = {
    "peers": _peers,
    "throughput": _throughput,
    "transport": _transport,
    "fairness": _fairness,
    "cold-start": _cold_start,
    "classify-folder": _classify_folder,
    "int8": _int8,
}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118)


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    sys.exit(main())
