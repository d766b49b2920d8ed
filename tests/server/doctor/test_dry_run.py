"""`cnnserve serve --dry-run` and `--print-config`: processes that end by themselves."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cnnserve.config.sources import from_sources
from support import HANG_S, tiny_onnx, write_version


def serve(*arguments: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    return subprocess.run(
        [sys.executable, "-m", "cnnserve", "serve", *map(str, arguments)],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )


def test_a_dry_run_of_sound_models_ends_with_0_and_needs_no_port(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ended = serve("--model-repository", tmp_path, "--http-port", str(taken.getsockname()[1]), "--dry-run")
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[1].split()[:3] == ["tiny", "1", "READY"]
    assert "self-test passed" in ended.stdout
    assert ended.stdout.endswith("\nready: 1 of 1 versions can be served\n")


def test_a_dry_run_tells_what_cannot_be_served_and_ends_with_1(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    (write_version(tmp_path / "altered" / "1") / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    (tmp_path / "empty").mkdir()
    ended = serve("--model-repository", tmp_path, "--dry-run")
    assert ended.returncode == 1
    rows = {line.split()[0]: line for line in ended.stdout.splitlines()[1:]}
    assert "UNAVAILABLE" in rows["altered"]
    assert "file model.onnx" in rows["altered"]
    assert "holds no version folder" in rows["empty"]
    assert ended.stdout.endswith("\nNOT ready: 1 of 3 versions can be served\n")


@pytest.mark.parametrize(("flags", "status"), [([], 1), (["--model-control-mode", "explicit"], 0)])
def test_a_dry_run_of_nothing(tmp_path: Path, flags: list[str], status: int) -> None:
    ended = serve("--model-repository", tmp_path, "--dry-run", *flags)
    assert ended.returncode == status
    assert ended.stdout.endswith("ready: 0 of 0 versions can be served\n")


def test_the_printed_settings_are_a_config_file_with_sources(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f'model_repository = "{tmp_path}"\nhttp_port = 9000\nmodel_control_mode = "explicit"\n')
    flags = ["--config", str(file), "--drain-grace-s", "2.5", "--load-model", 'a,b"\\']
    ended = serve(*flags, "--print-config", CNNSERVE_STRICT_READINESS="true")
    assert ended.returncode == 0
    assert ended.stderr == ""
    lines = {line.split()[0]: line.partition("  # ")[2] for line in ended.stdout.splitlines()[1:]}
    assert lines["http_port"] == "server.toml: http_port; CNNSERVE_HTTP_PORT"
    assert lines["drain_grace_s"] == "--drain-grace-s; CNNSERVE_DRAIN_GRACE_S"
    assert lines["strict_readiness"] == "CNNSERVE_STRICT_READINESS; CNNSERVE_STRICT_READINESS"
    assert lines["grpc_port"] == "default; CNNSERVE_GRPC_PORT"
    assert lines["cpu_threads"].startswith("default; CNNSERVE_CPU_THREADS; 0 stands for ")
    (tmp_path / "printed.toml").write_text(ended.stdout)
    printed = from_sources(["--config", str(tmp_path / "printed.toml")], {})
    assert printed == from_sources(flags, {"CNNSERVE_STRICT_READINESS": "true"})


def test_bad_settings_print_nothing(tmp_path: Path) -> None:
    ended = serve("--model-repository", tmp_path, "--print-config", CNNSERVE_GRPC_PORT="70000")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "grpc_port is 70000, expected 0 to 65535 (set by CNNSERVE_GRPC_PORT)" in ended.stderr


def test_a_dry_run_tells_what_is_wrong_with_the_tokens(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    (tmp_path / "tokens").write_text("web\n")
    ended = serve("--repository", tmp_path / "models", "--tokens-file", tmp_path / "tokens", "--dry-run")
    assert ended.returncode == 1
    assert f"NOT ready: {tmp_path / 'tokens'}, line 1: it has 1 fields" in ended.stdout
