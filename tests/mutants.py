"""`make mutants`: changes the pure core in small ways, and counts the changes that no test notices.

mutmut makes the changes and runs, for each of them, the tests that reach the changed function. It needs packages at the
top of a folder, so this script copies them there. It changes neither constants of modules nor decorated functions, and
here no texts of errors and logs: tests look for the values and names in them, not for their words.

    python tests/mutants.py --count 200 --seed 1
    python tests/mutants.py --count 0 --only policy     # all changes of one module
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from mutants_equivalent import EQUIVALENT

ROOT = Path(__file__).parent.parent
PACKAGES = ("server/cnnserve", "export/cnnserve_export", "client/cnnserve_client")
# Modules without input, output or threads of their own, and their tests: none of these starts a server.
CORE = {
    "cnnserve/api/parameters.py": ("server/api/test_parameters.py",),
    "cnnserve/api/status.py": ("server/api/test_status.py",),
    "cnnserve/api/tensors.py": ("server/api/test_tensors.py",),
    "cnnserve/batching/buckets.py": ("server/batching/test_buckets.py",),
    "cnnserve/batching/fair_queue.py": ("server/batching/test_fair_queue.py",),
    "cnnserve/batching/policy.py": ("server/batching/test_batch_policy.py",),
    "cnnserve/batching/request_queue.py": ("server/batching/test_request_queue.py",),
    "cnnserve/batching/run_times.py": ("server/batching/test_target.py",),
    "cnnserve/batching/statistics.py": ("server/batching/test_statistics.py",),
    "cnnserve/batching/target.py": ("server/batching/test_target.py",),
    "cnnserve/batching/turnover.py": ("server/batching/test_turnover.py",),
    "cnnserve/images/geometry.py": ("server/images/test_geometry.py",),
    "cnnserve/images/header.py": ("server/images/test_header_fields.py",),
    "cnnserve/json_text.py": ("server/test_json_text.py",),
    "cnnserve/model/classification.py": ("server/model/test_classification.py",),
    "cnnserve/process/admission.py": ("server/process/test_admission.py",),
    "cnnserve/process/cpu.py": ("server/process/test_cpu.py",),
    "cnnserve/registry/lifecycle.py": ("server/registry/test_lifecycle.py",),
    "cnnserve/registry/version_labels.py": ("server/registry/test_versions.py",),
    "cnnserve/registry/wanted_versions.py": ("server/registry/test_wanted_versions.py",),
    "cnnserve/repository/label_file.py": ("server/repository/test_label_file.py",),
    "cnnserve/repository/manifest/checks.py": ("server/repository/test_manifest.py", "trust/test_limits.py"),
    "cnnserve/repository/manifest/fields.py": ("server/repository/test_manifest_fields.py",),
    "cnnserve/repository/manifest/preprocessing.py": (
        "server/repository/test_manifest.py",
        "server/repository/test_manifest_names.py",
    ),
    "cnnserve/repository/manifest/probabilities.py": ("server/repository/test_golden_probabilities.py",),
    "cnnserve/repository/normalisation.py": ("server/repository/test_normalisation.py",),
    "cnnserve/repository/onnx_head.py": ("server/repository/test_normalisation.py",),
    "cnnserve/repository/onnx_header.py": ("server/repository/test_onnx_header.py",),
    "cnnserve/repository/onnx_wire.py": (
        "server/repository/test_onnx_header.py",
        "server/repository/test_normalisation.py",
    ),
    "cnnserve_client/batching.py": ("client/test_batching.py",),
    "cnnserve_client/pipeline.py": ("client/test_pipeline.py",),
    "cnnserve_client/retry.py": ("client/test_retry.py",),
}
# The module whose changes are tried first, so that mutmut makes the changes of all modules.
_FIRST = "cnnserve.json_text.*"
_PROGRAM = "import sys; sys.path.append(sys.argv.pop(1)); from mutmut.__main__ import cli; cli()"
# Lines that hold nothing but a message, or a part of one.
_MESSAGES = [r"^\s*raise \w+\(", r"^\s*_log\.", r"^\s*(return )?f?[\"'].*[\"'],?$", r"\bsaid = f?\""]
# mutmut's exit codes of a change that no test noticed, and of one that no test reached.
_SURVIVED, _UNREACHED = 0, (5, 33)


def main() -> int:
    """Runs the changes asked for and returns the exit status: 0 if tests notice all of them."""
    options = _options()
    tree = ROOT / "build" / "mutants"
    _copy(tree)
    mutmut = _Mutmut(options.tool, tree)
    mutmut.run(_FIRST)
    names = [name for name in mutmut.outcomes() if options.only in name]
    chosen = sorted(random.Random(options.seed).sample(names, min(options.count or len(names), len(names))))
    mutmut.run(*chosen)
    outcomes = mutmut.outcomes()
    unnoticed = [name for name in chosen if outcomes[name] in (_SURVIVED, *_UNREACHED)]
    diffs = {name: mutmut.diff(name) for name in unnoticed}
    survivors = {name: diff for name, diff in diffs.items() if _key(name, diff) not in EQUIVALENT}
    for name, diff in survivors.items():
        print(f"\n{'no test reaches' if outcomes[name] != _SURVIVED else 'survived'}: {name}\n{diff}")
    counted = len(chosen) - (len(unnoticed) - len(survivors))
    print(
        f"\n{counted - len(survivors)} of {counted} changes noticed "
        f"({1 - len(survivors) / max(1, counted):.1%}); seed {options.seed}, {len(names)} changes in all, "
        f"{len(unnoticed) - len(survivors)} known to change nothing"
    )
    return 1 if survivors else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Count the small changes of the pure core that no test notices.")
    parser.add_argument("--count", type=int, default=200, help="changes to try; 0: all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the changes (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only changes whose name has this text")
    text = "folder that mutmut is installed in (default: %(default)s)"
    parser.add_argument("--tool", type=Path, default=Path(sys.prefix) / "mutmut", metavar="DIR", help=text)
    return parser.parse_args()


def _copy(tree: Path) -> None:
    """Puts the packages and the tests into a folder of their own, in the order in which mutmut looks for them."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for folder in (*PACKAGES, "tests", "model_repo"):
        shutil.copytree(ROOT / folder, tree / Path(folder).name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = {
        "source_paths": list(CORE),
        "pytest_add_cli_args_test_selection": [f"tests/{test}" for tests in CORE.values() for test in tests],
        # mutmut has time limits of its own.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "--hypothesis-seed=0", "--timeout=0"],
        "do_not_mutate_patterns": _MESSAGES,
        "track_dependencies": False,
        "also_copy": [*(Path(package).name for package in PACKAGES), "tests", "model_repo"],
    }
    # Lists, strings and booleans are written in TOML as in JSON.
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text()
    (tree / "pyproject.toml").write_text("\n".join([project, "[tool.mutmut]", *lines, ""]))


class _Mutmut:
    """mutmut's command in a copy of the packages."""

    def __init__(self, tool: Path, tree: Path) -> None:
        if not (tool / "mutmut").is_dir():
            raise SystemExit(f"mutmut is not in {tool}; make mutants installs it there")
        self._command = [sys.executable, "-c", _PROGRAM, str(tool)]
        self._tree = tree
        # Without the checkout's own packages.
        self._environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(self, *names: str) -> None:
        """Tries the changes of these names or patterns."""
        self._call("run", *names)

    def diff(self, name: str) -> str:
        """Returns the lines that a change removes and adds."""
        lines = self._call("show", name).splitlines()
        return "\n".join(line for line in lines if line[:1] in ("-", "+") and line[:3] not in ("---", "+++"))

    def outcomes(self) -> dict[str, int | None]:
        """Returns the exit code of each change's tests, None if it was not tried."""
        found: dict[str, int | None] = {}
        for file in sorted((self._tree / "mutants").rglob("*.meta")):
            found |= json.loads(file.read_text())["exit_code_by_key"]
        return found

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [*self._command, *words],
            check=False,
            cwd=self._tree,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}\nmutmut {words[0]} failed with exit code {done.returncode}")
        return done.stdout


def _key(name: str, diff: str) -> tuple[str, str, str]:
    """Returns the function, and what the change made of what; the number of a change is another one tomorrow."""
    old, new = (" ".join(line[1:].strip() for line in diff.splitlines() if line[0] == sign) for sign in ("-", "+"))
    return name.partition("__mutmut")[0], old, new


if __name__ == "__main__":
    sys.exit(main())
