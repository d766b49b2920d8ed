"""What `make image-test` does, as far as it goes without containers: its load against a real server, its own checks.

`make image-test` itself builds and runs the image; it is for changes to what the image holds.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cnnserve
from support import HANG_S, REPOSITORY, RunningServer, serving, spawn

ROOT = REPOSITORY.parent
FOLDER = ROOT / "deploy" / "docker"
LOAD = [sys.executable, str(FOLDER / "image_test_load.py")]
DOCKERFILE = (FOLDER / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "log", REPOSITORY) as server:
        yield server


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LOAD, *arguments], check=False, capture_output=True, text=True, timeout=HANG_S)


def test_every_script_is_started_here() -> None:
    assert {path.name for path in (ROOT / "deploy").rglob("*") if path.suffix in (".py", ".sh")} == {
        "build.sh",
        "try.py",
        "try.sh",
        "compile.py",
        "containers.py",
        "engine.sh",
        "image-test.sh",
        "image_attacks.py",
        "image_test_load.py",
        "load_cuda.py",
    }


def test_it_classifies_one_digit_of_each_value(server: RunningServer) -> None:
    done = run("classify", server.address, "lenet5")
    assert (done.returncode, done.stdout) == (0, "10 of 10 digits right\n"), done.stderr


def test_a_model_that_is_not_there_fails_it(server: RunningServer) -> None:
    done = run("classify", server.address, "nobody")
    assert done.returncode != 0
    assert "right" not in done.stdout


def test_it_waits_until_the_server_is_ready(tmp_path: Path) -> None:
    began = time.time()
    server = spawn(tmp_path / "log", "--model-repository", REPOSITORY)
    try:
        port = server.wait_for(r"HTTP port (\d+)")[1]
        done = run("wait", f"127.0.0.1:{port}", str(began))
        assert done.returncode == 0, done.stderr
        assert 0 < float(done.stdout) <= time.time() - began
    finally:
        server.terminate()


def test_it_waits_no_longer_than_a_minute() -> None:
    done = run("wait", "127.0.0.1:1", str(time.time() - 59.5))
    assert (done.returncode, done.stdout) == (1, "")
    assert "not ready after 60 s" in done.stderr


def stop(server: RunningServer, command: str) -> tuple[int, str]:
    """Exit code and output of the load while `command` ends the server."""
    flags = ["--clients", "8", "--side", "1200", "--load-s", "0.5", server.address, "lenet5"]
    process = subprocess.Popen([*LOAD, "stop", *flags, "--", "bash", "-c", command], stdout=subprocess.PIPE, text=True)
    with process:
        # Its parent has to take note of its end, or the command would wait for it for ever.
        server.process.wait(HANG_S)
        said, _ = process.communicate(timeout=HANG_S)
    return process.returncode, said


def test_a_stop_under_load_loses_no_request(tmp_path: Path) -> None:
    with serving(tmp_path / "log", REPOSITORY) as server:
        pid = server.process.pid
        code, said = stop(server, f"kill -TERM {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.05; done")
        found = re.match(r"(\d+) requests in flight and \d+ later ones answered, (\d+) lost, (\d+) wrong", said)
        assert found is not None, said
        assert (code, int(found[1]) > 0, found[2], found[3]) == (0, True, "0", "0"), said
        assert server.process.returncode == 0


def test_a_server_that_is_killed_fails_it(tmp_path: Path) -> None:
    with serving(tmp_path / "log", REPOSITORY) as server:
        pid = server.process.pid
        code, said = stop(server, f"kill -KILL {pid}; while kill -0 {pid} 2> /dev/null; do sleep 0.05; done")
        assert code == 1, said
        assert " 0 lost" not in said


def test_without_an_engine_the_test_says_what_it_needs(tmp_path: Path) -> None:
    """A checkout of its own, and none but the programs that the script needs before it looks for an engine."""
    copy = tmp_path / "checkout"
    shutil.copytree(FOLDER, copy / "deploy" / "docker")
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / ".venv" / "bin" / "python").symlink_to(sys.executable)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname", "sed", "head", "mktemp", "rm"):
        (programs / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [programs / "bash", copy / "deploy" / "docker" / "image-test.sh"],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env={"PATH": str(programs), "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 1
    said = "no usable container engine; it takes podman, or docker with a running daemon, and the image"
    assert f"{said} python:3.11-slim-bookworm" in done.stderr
    # The temporary folder is gone.
    assert {path.name for path in tmp_path.iterdir()} == {"checkout", "bin"}


def test_the_script_is_bash() -> None:
    done = subprocess.run(["bash", "-n", FOLDER / "image-test.sh"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_image_copies_and_compiles_what_there_is() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()[:-1]]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert {*sources} == allowed
    (named,) = re.findall(r"_BY_NAME = \((.+?)\n\)", (FOLDER / "compile.py").read_text(), re.DOTALL)
    modules = re.findall(r'"(.+)"', named)
    assert modules
    assert all(importlib.util.find_spec(module) for module in modules)


@pytest.mark.parametrize("image", ["cpu", "gpu", "export"])
def test_each_image_installs_what_its_extras_say(image: str) -> None:
    """The program of the Dockerfile, with the extras that it gives it."""
    extras = re.findall(rf"^ +{image}\) extras=(.+) ;;", DOCKERFILE, re.MULTILINE)
    (program,) = re.findall(r'python -c "(import os, tomllib;.+?)" \\\n +> needs\.txt', DOCKERFILE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program.replace("\\\n", "")],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "EXTRAS": extras[0]},
    )
    names = {re.split(r"[^\w-]", line)[0] for line in done.stdout.splitlines()}
    assert {"grpcio", "uvicorn", "pillow", "cryptography"} <= names
    assert ("onnxruntime-gpu" in names) == (image == "gpu")
    assert ("onnxruntime" in names) == (image != "gpu")
    assert ("torch" in names) == (image == "export")
    assert "pytest" not in names


def test_each_image_has_a_last_stage() -> None:
    assert re.findall(r"^FROM runtime AS runtime-(\w+)$", DOCKERFILE, re.MULTILINE) == ["cpu", "gpu", "export"]
    assert re.findall(r"CNNSERVE_IMAGE=(\w+)", DOCKERFILE) == ["cpu", "gpu", "export"]


def test_the_build_names_version_commit_and_image(tmp_path: Path) -> None:
    """With a command that prints its arguments in the place of an engine."""
    print_arguments = tmp_path / "build"
    print_arguments.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    print_arguments.chmod(0o755)
    done = subprocess.run(
        ["bash", FOLDER / "build.sh", "gpu", "here:1", "--build-arg", "EXTRAS=otel"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "BUILD": str(print_arguments), "ENGINE": "true"},
    )
    words = done.stdout.splitlines()
    assert words[:2] == ["here:1", str(ROOT)]
    assert {"IMAGE=gpu", f"VERSION={cnnserve.__version__}", "EXTRAS=otel"} <= {*words}
    (revision,) = [word for word in words if word.startswith("REVISION=")]
    assert revision == "REVISION=" or re.fullmatch(r"REVISION=[0-9a-f]{40}", revision)


def test_the_attacks_need_an_engine_that_works(tmp_path: Path) -> None:
    """A check that fails is printed and gives the status 1."""
    done = subprocess.run(
        [sys.executable, FOLDER / "image_attacks.py", "false", "image", tmp_path, "labels", "service"],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["labels", "FAILED:"], ["service", "FAILED:"]]


@pytest.mark.skipif(importlib.util.find_spec("nvidia") is not None, reason="CUDA is installed")
def test_a_missing_library_of_cuda_fails_the_build_of_the_image() -> None:
    """ONNX Runtime without its CUDA provider, as it is here, is an image whose provider cannot be loaded."""
    done = subprocess.run(
        [sys.executable, FOLDER / "load_cuda.py"], check=False, capture_output=True, text=True, timeout=HANG_S
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "the slimmed CUDA is incomplete: " in done.stderr
    assert "libonnxruntime_providers_cuda.so" in done.stderr


def test_the_pinned_gpu_packages_are_complete() -> None:
    pinned = (ROOT / "constraints.txt").read_text()
    assert "\nonnxruntime-gpu==" in pinned
    assert len(re.findall(r"^nvidia-(?!ml-py)[\w-]+==", pinned, re.MULTILINE)) == 7
