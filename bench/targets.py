"""What the server reaches beside plain ONNX Runtime on the same cores, part by part, and whether that is enough.

Two servers are measured: one with the default layout, one with the layout that the server finds by itself
(`--auto-layout`). All that is compared is measured in turns. A ratio compares cells of one round; the result is the
median over the rounds. "Plain" is ONNX Runtime without a server, in the best layout and batch with at most 16 rows
under way, found by exhaustive search: all are measured once, those near the best again in every round.

- `layout`: 16 tensors in flight, beside plain; p99 beside that of the default layout.
- `jpeg`: 16 JPEGs in flight, beside 1 / (1 / plain + CPU time of the decoding / cores).
- `single`: 1 tensor in flight, beside plain with all cores and batch 1.
- `open`: p99 / p50 at 80 % load in open loop (Poisson), beside that of the same arrivals through an ideal queue with
  the measured run times. A refused request counts as one that is never answered.
- `int8`: int8 ResNet-50, 16 in flight, beside plain fp32.
- `memory`: five models, beside the same sessions in a bare script.

Cold starts: `cold_start.py`. With `--repository`, the first call exports the models, which takes minutes.

    python bench/targets.py --repository ~/models --part layout,single --rounds 3 --seconds 3
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import harness
import machine
import target_parts
from harness import Worker
from target_parts import KINDS, MODEL_PARTS, Model, Options, Outcome

MODELS = ("resnet50", "googlenet", "resnet18", "alexnet")
PARTS = (*MODEL_PARTS, "int8", "memory")
FIVE = ("lenet5", "alexnet", "googlenet", "resnet18", "resnet50")
# The automatic layout could be the default if it is nowhere worse than this.
WORST_GAIN = 0.97


def main() -> int:
    """Measures the parts and returns the exit status: 0 if every target was met."""
    words = _parser().parse_args()
    options = Options(words.rounds, words.seconds, words.screen_seconds, words.open_seconds)
    outcomes: dict[str, dict[str, Outcome]] = {}
    with harness.exported(_needed(words), words.repository) as root:
        chosen = [part for part in words.part if part in MODEL_PARTS]
        for name in words.models if chosen else ():
            with target_parts.serving(name, root, words.kinds) as (servers, layout):
                if layout:
                    print(f"\n{name}: the automatic layout is {layout}", flush=True)
                model = Model(name, root, servers, options)
                outcomes[name] = {part: _told(name, part, MODEL_PARTS[part](model)) for part in chosen}
                outcomes[name]["automatic"] = Outcome({"layout": layout})
        if "int8" in words.part:
            outcomes["int8"] = {"int8": _told("resnet50", "int8", _int8(root, words.kinds, options))}
        if "memory" in words.part:
            outcomes["memory"] = {"memory": _told("five models", "memory", _memory(root, words.five, options))}
    rows = _rows(outcomes)
    width = max(len(what) for _, what, _ in rows)
    print("\n" + "\n".join(f"  {word:<6}  {what:<{width}}  {reached}" for word, what, reached in rows))
    _print_gains(outcomes)
    cells = {name: {part: each.cells for part, each in parts.items()} for name, parts in outcomes.items()}
    settings = {"rounds": options.rounds, "seconds": options.seconds, "open_seconds": options.open_seconds}
    harness.write_result("targets", {"settings": settings, "targets": rows, "cells": cells})
    return 0 if all(row[0] == "ok" for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the server beside plain ONNX Runtime, part by part.")
    harness.add_models(parser, MODELS)
    harness.add_rounds(parser, 3, 3.0)
    harness.add_repository(parser)
    text = f"parts to measure, separated by commas (default: {','.join(PARTS)})"
    parser.add_argument("--part", type=_parts, default=list(PARTS), help=text)
    text = f"layouts of the server, separated by commas (default: {','.join(KINDS)})"
    parser.add_argument("--kinds", type=lambda value: value.split(","), default=list(KINDS), help=text)
    text = "seconds for each plain layout of the search, and each size of the ideal queue (default: %(default)s)"
    parser.add_argument("--screen-seconds", type=float, default=1.0, help=text)
    text = "seconds of each open loop, one a round (default: %(default)s)"
    parser.add_argument("--open-seconds", type=float, default=15.0, help=text)
    text = f"models of the part memory, separated by commas (default: {','.join(FIVE)})"
    parser.add_argument("--five", type=lambda value: value.split(","), default=list(FIVE), help=text)
    return parser


def _parts(value: str) -> list[str]:
    found = value.split(",")
    if unknown := set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown parts: {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    return found


def _needed(words: argparse.Namespace) -> list[str]:
    models = list(words.models) if set(words.part) & set(MODEL_PARTS) else []
    models += ["resnet50"] if "int8" in words.part else []
    models += words.five if "memory" in words.part else []
    return [*dict.fromkeys(models)]


def _told(name: str, part: str, outcome: Outcome) -> Outcome:
    print(f"{name}, {part}: " + "; ".join(f"{what}: {reached}" for what, reached, _ in outcome.verdicts), flush=True)
    return outcome


def _rows(outcomes: dict[str, dict[str, Outcome]]) -> list[list[str]]:
    return [
        [harness.verdict(passed=passed), f"{name}: {what}", reached]
        for name, parts in outcomes.items()
        for outcome in parts.values()
        for what, reached, passed in outcome.verdicts
    ]


def _print_gains(outcomes: dict[str, dict[str, Outcome]]) -> None:
    gains = {
        f"{name}: {what}": gain
        for name, parts in outcomes.items()
        for outcome in parts.values()
        for what, gain in outcome.gains.items()
    }
    if not gains:
        return
    print("\nthe automatic layout beside the default one (1.03: 3 % better)")
    print(harness.table(["", "gain"], [[what, f"{gain:.3f}"] for what, gain in gains.items()]))
    if full := [gain for what, gain in gains.items() if what.endswith(target_parts.FULL)]:
        worst = min(gains, key=lambda what: gains[what])
        print(
            f"16 in flight: it wins on {sum(gain >= 1 for gain in full)} of {len(full)} models. "
            f"Its worst gain is {gains[worst]:.3f} ({worst}). To be the default, it must win on all, "
            f"and be nowhere below {WORST_GAIN}."
        )


def _int8(root: Path, kinds: Sequence[str], options: Options) -> Outcome:
    outcome = Outcome()
    fp32, name = root / "resnet50" / "1" / harness.manifest_of(root, "resnet50").onnx.file, "resnet50-int8"
    if not (root / name / "1").is_dir():
        _export_int8(root, name)
    with target_parts.serving(name, root, kinds) as (servers, layout):
        model = Model(name, root, servers, options)
        near = target_parts.near_best(target_parts.screen(fp32, options))[:1]
        served, plain = target_parts.against_plain(model, fp32, near)
    for kind in served:
        outcome.check(f"{kind}, int8 / plain fp32", target_parts.ratio(served[kind], plain[near[0]]), least=1.6)
    outcome.cells = {"plain": {str(near[0]): plain[near[0]]}, "served": served, "layout": layout}
    return outcome


def _export_int8(root: Path, name: str) -> None:
    """Exports ResNet-50 with random weights as int8, calibrated on crops of photographs."""
    import int8  # noqa: PLC0415 - it imports scikit-learn and matplotlib, which no other part needs

    with tempfile.TemporaryDirectory(prefix="cnnserve-bench-") as folder:
        photographs = Path(folder) / "photographs"
        int8.write_photographs(photographs, seed=0)
        words = ["--calibration", str(photographs), "--evaluation", str(photographs), "--min-agreement", "0"]
        int8.export(root, "resnet50", name, "--precision", "int8", *words)


def _memory(root: Path, models: Sequence[str], options: Options) -> Outcome:
    outcome = Outcome()
    manifests = {model: harness.manifest_of(root, model) for model in models}
    served = {}
    with harness.only(models, root) as repository, harness.serving(repository) as server:
        for model in models:
            server.wait_for(f"model {model} version 1(: self-test passed(?!.*the rest)| passed all runs)")
        # The server gives free memory back a moment later.
        time.sleep(1)
        served["ready"] = machine.memory_mib(server.pid)
        for model, manifest in manifests.items():
            body = harness.infer_request(manifest, model).SerializeToString()
            harness.load(server.address, [body], in_flight=target_parts.IN_FLIGHT, seconds=options.seconds)
        served["after load"] = machine.memory_mib(server.pid)
    files = [root / model / "1" / manifest.onnx.file for model, manifest in manifests.items()]
    with Worker("bare_sessions.py", str(machine.cores()), *files) as bare:
        # As the self-test does: one row, three, and a full batch.
        for batch in (3, max(manifest.max_batch_size for manifest in manifests.values())):
            bare.ask(batch=batch)
        plain = machine.memory_mib(bare.pid)
    for when, mib in served.items():
        outcome.check(f"memory, {when} / bare script", mib / plain, most=1.15)
    outcome.cells = {"served_mib": served, "bare_mib": plain}
    return outcome


if __name__ == "__main__":
    sys.exit(main())
