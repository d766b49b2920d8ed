"""The part that runs the tests for GPUs with every model, in one pytest process that keeps each outcome."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from harness import BENCH
from setting import Setting, copy
from steps import Result, Step

ROOT = BENCH.parent
# Less is not worth the start of pytest.
_LEAST_S = 10.0


def tests(setting: Setting) -> Iterator[Step]:
    """The tests for GPUs. If there is no time for all, the next start runs those that are missing."""
    outcomes = setting.output / "parts" / "tests.jsonl"

    def run() -> Result:
        log = setting.output / "tests.log"
        with log.open("w") as file:
            done = subprocess.run(
                _command(outcomes), cwd=ROOT, stdout=file, stderr=file, env=_environment(setting), check=False
            )
        # 0: all passed, 1: some failed.
        if done.returncode not in (0, 1):
            raise RuntimeError(f"pytest ended with status {done.returncode}; its output is in {log}")
        return counted(outcomes)

    yield Step("pytest", _LEAST_S, run, lambda: counted(outcomes))


def counted(outcomes: Path) -> Result:
    """Returns how many tests there are and how many had each outcome, and why tests failed or were skipped."""
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
    last = {line["test"]: line for line in lines if "test" in line}
    counts = Counter(line["outcome"] for line in last.values())
    return {
        "tests": max((line["collected"] for line in lines if "collected" in line), default=0),
        **{outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")},
        "seconds": round(sum(line["seconds"] for line in last.values()), 1),
        "reasons": {test: line["reason"] for test, line in last.items() if line["reason"]},
    }


def _command(outcomes: Path) -> list[str]:
    outcomes.parent.mkdir(parents=True, exist_ok=True)
    files = [str(ROOT / "tests" / "server" / "runtime" / name) for name in ("test_gpu.py", "test_gpus.py")]
    bare = ["-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", *bare, "-p", "outcomes", "--outcomes", str(outcomes), *files]


def _environment(setting: Setting) -> dict[str, str]:
    repository = setting.output / "tested"
    for model in sorted(path for path in setting.models.iterdir() if (path / "1").is_dir()):
        copy(model, repository / model.name, "", setting.size.test_batch)
    paths = [str(ROOT / "tests"), str(BENCH / "gpu"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        # The plugins of other packages on this machine.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "CNNSERVE_GPU_REPOSITORY": str(repository),
        "CNNSERVE_GPU_TESTS_ON": setting.kind,
    }
