"""What a run shows: shares of plain ONNX Runtime, targets, and the published records beside them."""

from collections.abc import Mapping
from typing import Any

import harness
from steps import Result

Results = Mapping[str, Mapping[str, Result]]
Target = tuple[str, str, bool]

# Published images/s of ResNet-50 on one H200 with TensorRT and int8: all images at hand, and requests that arrive one
# by one.
RECORDS = {"offline": 94_620.0, "server, within 15 ms": 79_029.0}
SHARE = 0.9
P99_OVER_P50 = 3.0


def summary(results: Results) -> dict[str, Any]:
    """Returns the summary of the results so far. What has not been measured is left out."""
    plain, served = _best_plain(results), _best_served(results)
    ceilings = [result["images_per_s"] for _, result in _measured(results, "ceiling", "images_per_s")]
    shares = {
        precision: {"of_copied": rate / plain[precision]["copied"], "of_resident": rate / plain[precision]["resident"]}
        for precision, (_, rate) in served.items()
        if precision in plain
    }
    return {
        "plain": plain,
        "served": {precision: {"cell": cell, "images_per_s": rate} for precision, (cell, rate) in served.items()},
        "share_of_plain": shares,
        "tail": {
            key: {"p99_over_p50": result["p99_ms"] / result["p50_ms"], "failed": sum(result["failed"].values())}
            for key, result in _measured(results, "tail", "p99_ms")
        },
        "front_end_images_per_s": max(ceilings, default=None),
        "records": {
            name: {"images_per_s": record, "served": {p: rate / record for p, (_, rate) in served.items()}}
            for name, record in RECORDS.items()
        },
        "tests": dict(results.get("tests", {}).get("pytest", {})),
        "cores": _cores(results),
    }


def targets(found: Mapping[str, Any]) -> list[Target]:
    """Returns every target: its text, the value that was reached, and whether this is enough."""
    rows: list[Target] = []
    for precision, share in found["share_of_plain"].items():
        reached = share["of_copied"]
        rows.append((f"{precision}: served >= {SHARE} of plain with copies", f"{reached:.3f}", reached >= SHARE))
    for key, cell in found["tail"].items():
        ratio, failed = cell["p99_over_p50"], cell["failed"]
        what = f"{key}: p99 <= {P99_OVER_P50:g} x p50 at 80 % load, and no request fails"
        rows.append((what, f"{ratio:.2f}, {failed} failed", ratio <= P99_OVER_P50 and not failed))
    if tests := found["tests"]:
        wrong = tests.get("failed", 0) or "error" in tests
        rows.append(("no test fails", f"{tests.get('passed', 0)} passed, {tests.get('failed', 0)} failed", not wrong))
    return rows


def text(found: Mapping[str, Any]) -> str:
    """Returns the summary for people."""
    rows = [
        [
            precision,
            f"{found['plain'].get(precision, {}).get('copied', 0):,.0f}",
            f"{found['plain'].get(precision, {}).get('resident', 0):,.0f}",
            f"{cell['images_per_s']:,.0f}",
            cell["cell"],
            *(f"{record['served'][precision]:.3f}" for record in found["records"].values()),
        ]
        for precision, cell in found["served"].items()
    ]
    head = ["images/s", "plain, copied", "plain, resident", "served", "best cell", *(f"of {name}" for name in RECORDS)]
    lines = [harness.table(head, rows)] if rows else []
    if found["front_end_images_per_s"]:
        lines.append(f"front end alone: {found['front_end_images_per_s']:,.0f} images/s")
    lines += [f"  {harness.verdict(passed=passed):<6}  {what}: {reached}" for what, reached, passed in targets(found)]
    return "\n".join(lines)


def _best_plain(results: Results) -> dict[str, dict[str, float]]:
    """Returns for each precision the largest rates of plain ONNX Runtime over all batch sizes and loops."""
    best: dict[str, dict[str, float]] = {}
    for key, result in _measured(results, "plain", "copied"):
        rates = best.setdefault(key.partition(",")[0], {"copied": 0.0, "resident": 0.0})
        for name in rates:
            rates[name] = max(rates[name], result[name])
    return best


def _best_served(results: Results) -> dict[str, tuple[str, float]]:
    """Returns for each precision the cell with the largest rate, and that rate."""
    best: dict[str, tuple[str, float]] = {}
    for key, result in _measured(results, "throughput", "images_per_s"):
        precision, _, cell = key.partition(", ")
        if result["images_per_s"] > best.get(precision, ("", 0.0))[1]:
            best[precision] = (cell, result["images_per_s"])
    return best


def _cores(results: Results) -> dict[str, float]:
    """Returns images/s on the CPU: with the layout of `cnnserve tune`, the default one, and the best plain one."""
    rates = {key: float(result["images_per_s"]) for key, result in _measured(results, "cores", "images_per_s")}
    found = {key.partition(", ")[2]: rate for key, rate in rates.items() if key.startswith("served")}
    plain = [rate for key, rate in rates.items() if key.startswith("plain")]
    return found | ({"best plain": max(plain)} if plain else {})


def _measured(results: Results, part: str, value: str) -> list[tuple[str, Result]]:
    return [(key, result) for key, result in results.get(part, {}).items() if result.get(value)]
