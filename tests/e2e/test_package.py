"""The contents of the package, and the modules that each command imports."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support import HANG_S

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("onnxruntime", "torch", "onnx", "PIL", "sklearn")


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S, cwd=cwd)


def imported_by(*arguments: str) -> set[str]:
    """Returns the top-level modules that `cnnserve ARGUMENTS` imports."""
    code = (
        "import sys, json\nfrom cnnserve.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "command",
    ["classify", "models", "labels", "load", "unload", "health", "serve", "show", "export", "train-lenet", "copy"],
)
def test_help_imports_nothing_heavy(command: str) -> None:
    assert not imported_by(command, "--help") & set(HEAVY)


def test_classify_imports_no_runtime() -> None:
    modules = imported_by("classify", __file__, "--model", "m", "--address", "127.0.0.1:1", "--timeout-s", "1")
    assert "grpc" in modules
    assert not modules & set(HEAVY)


def test_show_needs_the_base_install_only() -> None:
    modules = imported_by("show", str(ROOT / "model_repo" / "lenet5"))
    assert "cnnserve" in modules
    assert not modules & {*HEAVY, "grpc", "google"}


def test_the_server_imports_no_exporter() -> None:
    code = "import sys, cnnserve.app; print(*sys.modules)"
    done = run_python("-c", code)
    assert "onnxruntime" in done.stdout.split()
    assert not {"torch", "onnx", "sklearn", "cnnserve_export", "cnnserve_client"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("onnxruntime", ["serve", "--model-repository", "."], "cpu"),
        ("torch", ["export", "lenet5"], "cpu,export"),
        ("sklearn", ["train-lenet"], "cpu,export,train"),
    ],
)
def test_a_missing_extra_is_named(module: str, arguments: list[str], extra: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['{module}'] = None\nfrom cnnserve.cli import main\nsys.exit(main({arguments}))"
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert f'needs {module}, which is not installed: pip install "cnnserve[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_exporting_and_importing_need_no_scikit_learn() -> None:
    code = "import sys, cnnserve_export.pipeline, cnnserve_export.importing; print(*sys.modules)"
    done = run_python("-c", code)
    assert "onnx" in done.stdout.split()
    assert "sklearn" not in done.stdout.split()


def test_unknown_commands_and_versions() -> None:
    assert run_python("-m", "cnnserve", "--version").stdout.startswith("cnnserve 0.")
    assert run_python("-m", "cnnserve", "--help").returncode == 0
    unknown = run_python("-m", "cnnserve", "srve")
    assert unknown.returncode == 2
    assert "unknown command 'srve'" in unknown.stderr


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        timeout=HANG_S,
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("/METADATA"))).decode()
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"cnnserve", "cnnserve_client", "cnnserve_export"}
    assert {"cnnserve/py.typed", "cnnserve/wire/classifier_pb2.pyi", "cnnserve_client/client.py"} <= names
    assert {"cnnserve_export/imagenet_labels.txt", "cnnserve/tools/evaluation/page/style.css"} <= names
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert sorted(line.split()[1].partition(">")[0].partition("<")[0] for line in base) == [
        "grpcio",
        "numpy",
        "protobuf",
    ]


def test_show_ends_quietly_where_its_reader_went_away() -> None:
    command = [sys.executable, "-m", "cnnserve", "show", str(ROOT / "model_repo"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert process.wait(HANG_S) == 141
    assert process.stderr
    with process.stderr as stderr:
        assert stderr.read() == b""
