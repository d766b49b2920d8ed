"""Measures cnnserve on an NVIDIA GPU within a fixed time, or rehearses that on CPUs. README.md beside it says how.

Every result is kept at once. A second start with the same folder measures what is missing.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import harness
import onnxruntime
import parts
import summary
from free_model import write_free_model
from gpu_tests import tests
from setting import FREE, SIZES, Setting
from steps import Kept, Result, Step, part_end, run_part

from cnnserve.model_config.providers import Provider
from cnnserve.repository.staging import replace_file
from cnnserve.runtime import cuda, gpus
from cnnserve.runtime.session import ProviderUnavailable, require

# Each part with its share of the time, in seconds of the whole.
PARTS: Mapping[str, tuple[float, Callable[[Setting], Iterator[Step]]]] = {
    "tests": (140, tests),
    "plain": (60, parts.plain),
    "instances": (75, parts.instances),
    "throughput": (125, parts.throughput),
    "tail": (40, parts.tail),
    "ceiling": (35, parts.ceiling),
    "cores": (45, parts.cores),
}
# What is left of 9 minutes ends the last server and writes the results.
_MINUTES = 8.75


def main() -> int:
    """Runs the parts and returns the exit status: 0 if all is measured and, on a GPU, every target reached."""
    options = _options()
    end = time.monotonic() + options.minutes * 60
    gpu = _gpu(options.provider)
    setting = Setting(
        options.provider, SIZES[options.size], options.models.resolve(), options.network, options.output.resolve()
    )
    _check(setting, options)
    missing = _run(setting, options.parts, gpu, end)
    found = summary.summary(setting.results)
    print(summary.text(found))
    for line in missing:
        print(f"  {line}")
    missed = options.provider == "cuda" and not all(passed for *_, passed in summary.targets(found))
    return 1 if missing or missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure cnnserve on a GPU, or rehearse that on CPUs.")
    parser.add_argument("--models", type=Path, required=True, help="model repository that prepare.sh has made")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; a second start goes on")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--network", default="resnet50", help="network to measure (default: %(default)s)")
    parser.add_argument("--parts", type=_parts, default=[*PARTS], help=f"parts to run (default: {','.join(PARTS)})")
    parser.add_argument("--size", choices=[*SIZES], help="how much to measure (default: full on cuda, small on cpu)")
    text = "time for all parts together (default: %(default)s)"
    parser.add_argument("--minutes", type=float, default=_MINUTES, help=text)
    options = parser.parse_args()
    options.size = options.size or {"cuda": "full", "cpu": "small"}[options.provider]
    return options


def _parts(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no part; expected some of {','.join(PARTS)}")
    # In their own order, because later ones use the results of earlier ones.
    return [name for name in PARTS if name in names]


def _gpu(kind: str) -> dict[str, Any]:
    """Returns what a reader needs to know of the GPU. Ends the program if the GPU cannot be used."""
    if kind == "cpu":
        return {}
    try:
        require(Provider("cuda"))
        found = {"name": cuda.device_name(0), "driver_cuda": cuda.driver_version()}
    except (ProviderUnavailable, OSError) as error:
        raise SystemExit(f"--provider cuda cannot be used: {error}") from error
    return found | {"memory_bytes": [gpu.memory_total_bytes for gpu in gpus.readings()]}


def _check(setting: Setting, options: argparse.Namespace) -> None:
    """Makes the output folder. Ends the program if it has another run, or if the models are not there."""
    if not setting.precisions:
        raise SystemExit(f"{setting.models} has no model {setting.network}; make it with prepare.sh")
    run = {"provider": setting.kind, "network": setting.network, "size": options.size, "models": str(setting.models)}
    file = setting.output / "run.json"
    if file.exists() and (other := json.loads(file.read_text())) != run:
        raise SystemExit(f"{setting.output} has the results of another run: {other}; choose another --output")
    setting.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run) + "\n")
    write_free_model(setting.output / FREE, harness.manifest_of(setting.models, setting.network))


def _run(setting: Setting, names: list[str], gpu: Mapping[str, Any], end: float) -> list[str]:
    """Runs the parts until `end`. Returns a line for each part that is not complete, and for each step that failed."""
    kept = {name: Kept(setting.output / "parts" / f"{name}.json") for name in PARTS}
    setting.results.update({name: part.results for name, part in kept.items()})
    rest = [name for name in names if not kept[name].complete]
    try:
        for place, name in enumerate(rest):
            until = part_end(time.monotonic(), end, [PARTS[later][0] for later in rest[place:]])
            complete = run_part(
                PARTS[name][1](setting),
                kept[name],
                until,
                tell=partial(_tell, name),
                on_failure=setting.held.drop,
            )
            kept[name].finish(complete=complete and not kept[name].failed)
            _write(setting, kept, gpu)
    finally:
        setting.held.drop()
    missing = [f"{name} is not complete" for name in names if not kept[name].complete]
    for name in names:
        missing += [f"{name}: {key} failed: {kept[name].results[key]['error']}" for key in kept[name].failed]
    return missing


def _tell(part: str, key: str, result: Result) -> None:
    names = ("images_per_s", "copied", "p50_ms", "p99_ms", "passed", "skipped")
    values = [f"{name} {result[name]:,.6g}" for name in names if name in result]
    # Tests that failed, or requests by status.
    if failed := result.get("failed"):
        values.append(f"failed {failed}")
    print(f"{part:<10} {key}: {result.get('error') or ', '.join(values) or 'done'}", flush=True)


def _write(setting: Setting, kept: Mapping[str, Kept], gpu: Mapping[str, Any]) -> None:
    """Replaces the file of all results."""
    found = summary.summary(setting.results)
    result = harness.result(
        "gpu",
        {
            "provider": setting.kind,
            "network": setting.network,
            "gpu": gpu,
            "prepared_commit": _prepared_commit(setting),
            "complete": {name: part.complete for name, part in kept.items()},
            "layout": str(setting.best_layout),
            "summary": found,
            "targets": summary.targets(found),
            "parts": setting.results,
        },
    )
    # Beside packages of its own, a machine may have the metadata of another ONNX Runtime.
    result["versions"]["onnxruntime"] = onnxruntime.__version__
    replace_file(setting.output / "gpu.json", (json.dumps(result, indent=1) + "\n").encode())


def _prepared_commit(setting: Setting) -> str:
    """Returns the commit with which prepare.sh made the models, because there may be no git here; "" if unknown."""
    file = setting.models.parent / "commit"
    return file.read_text().strip() if file.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
