"""`cnnserve doctor` as a process: whatever is missing or broken, it reports that and everything else."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from signing import new_key, public_key
from support import HANG_S, as_schema_1, rewrite_manifest, tiny_onnx, write_version

Found = dict[str, Any]


def doctor(*arguments: str | Path, **variables: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    ended = subprocess.run(
        [sys.executable, "-m", "cnnserve", "doctor", *map(str, arguments)],
        env=environment | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return ended.returncode, ended.stdout


def found(*arguments: str | Path, **variables: str) -> tuple[int, Mapping[str, Mapping[str, Found]]]:
    """Exit status and findings, by section and name."""
    ports = ("--grpc-port", "0", "--http-port", "0")
    status, output = doctor("--json", *ports, *arguments, **variables)
    sections = json.loads(output)["sections"]
    return status, {section: {one["name"]: one for one in ones} for section, ones in sections.items()}


def before_site_packages(folder: Path) -> str:
    return os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Mapping[str, Found]]:
    """What is found in a repository with one version of each kind."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root / "good" / "1")
    (write_version(root / "good" / "2") / "labels.txt").write_text("x\n")
    write_version(root / "good" / "3")
    (write_version(root / "altered" / "1") / "model.onnx").write_bytes(tiny_onnx(softmax=False))
    (write_version(root / "broken" / "1") / "manifest.json").write_text("{")
    write_version(root / "original" / "1").rename(root / "original" / "7")
    as_schema_1(write_version(root / "old" / "1"))
    golden = write_version(root / "wrong" / "1")
    (golden / "golden.bin").write_bytes(b"\0\0\0\0" * 3)
    rewrite_manifest(golden)
    (root / "plain" / "1").mkdir(parents=True)
    (root / "plain" / "1" / "model.onnx").write_bytes(tiny_onnx())
    (root / "missing" / "1").mkdir(parents=True)
    write_version(root / "config" / "1")
    (root / "config" / "config.pbtxt").write_text("max_batch_sice: 3\n")
    (root / "nothing").mkdir()
    (root / "not a model").mkdir()
    (root / "good" / "version_labels.json").write_text('{"canary": 9}')
    status, sections = found("--model-repository", root)
    return status, sections["model repository"]


@pytest.mark.parametrize(
    ("name", "status", "text", "fix"),
    [
        ("good version 1", "ok", "not served (version_policy)", ""),
        ("good version 2", "warning", "altered: file labels.txt has 2 bytes", "copy the version again"),
        ("good version 3", "ok", "self-test passed", ""),
        ("good", "warning", "label canary stands for version 9, which is not served", "version_labels.json"),
        ("altered version 1", "problem", "altered: file model.onnx", "copy the version again"),
        ("broken version 1", "problem", "broken manifest", ""),
        ("original version 7", "problem", "wrong place", "publish a copy: cnnserve copy"),
        ("old version 1", "note", "self-test passed", "cnnserve upgrade /"),
        ("wrong version 1", "problem", "golden", ""),
        ("plain version 1", "note", "unverified", "cnnserve"),
        ("missing version 1", "problem", "file model.onnx is missing from the version folder", ""),
        ("config version 1", "problem", "max_batch_sice", ""),
        ("nothing", "problem", "holds no version folder", "add one with a number as its name"),
        ("folder not a model", "warning", "is ignored", "rename the folder"),
    ],
)
def test_every_version_has_its_problem_and_the_fix(
    spoiled: tuple[int, Mapping[str, Found]], name: str, status: str, text: str, fix: str
) -> None:
    assert spoiled[0] == 1
    finding = spoiled[1][name]
    assert finding["status"] == status
    assert text in finding["text"]
    assert fix in finding["fix"]
    assert (finding["status"] == "ok") == (finding["fix"] == "")


def test_a_sound_machine_and_repository_exit_with_0(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    status, sections = found("--model-repository", tmp_path)
    assert status == 0
    assert sections["software"]["ONNX Runtime"]["status"] == "ok"
    assert sections["execution providers"]["CPUExecutionProvider"]["status"] == "ok"
    assert sections["model repository"]["tiny version 1"]["placement"]["CPUExecutionProvider"] > 0
    assert sections["memory"]["memory"]["models_bytes"] > 0


def test_without_loading_only_files_are_compared(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    _, sections = found("--model-repository", tmp_path, "--no-load")
    assert sections["model repository"]["tiny version 1"]["text"] == "files match the digests in the manifest"


def test_an_unverified_version_is_a_problem_if_a_manifest_is_required(tmp_path: Path) -> None:
    (tmp_path / "plain" / "1").mkdir(parents=True)
    (tmp_path / "plain" / "1" / "model.onnx").write_bytes(tiny_onnx())
    status, sections = found("--model-repository", tmp_path, "--require-manifest")
    assert status == 1
    assert "require_manifest" in sections["model repository"]["plain version 1"]["text"]


@pytest.mark.parametrize("allowed", [False, True])
def test_an_unverified_version_beside_a_verified_one_is_a_problem_unless_it_is_allowed(
    tmp_path: Path, allowed: bool
) -> None:
    write_version(tmp_path / "m" / "1")
    (tmp_path / "m" / "2").mkdir()
    (tmp_path / "m" / "2" / "model.onnx").write_bytes(tiny_onnx())
    if allowed:
        text = 'parameters { key: "cnnserve.allow_unverified" value { string_value: "true" } }'
        (tmp_path / "m" / "config.pbtxt").write_text(text)
    finding = found("--model-repository", tmp_path, "--no-load")[1]["model repository"]["m version 2"]
    assert (finding["status"] == "problem") != allowed
    assert ("so the server refuses it" in finding["text"]) != allowed


def test_no_repository_is_no_problem(tmp_path: Path) -> None:
    status, sections = found()
    assert status == 0
    assert sections["model repository"]["repository"]["status"] == "note"


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (
            ["--model-repository", "/no/such/folder"],
            {},
            "'/no/such/folder' is not a folder (set by --repository)",
        ),
        ([], {"CNNSERVE_DRAIN_GRACE_S": "soon"}, "CNNSERVE_DRAIN_GRACE_S is 'soon'"),
        (["--config", "/no/such/file"], {}, "cannot be read"),
    ],
)
def test_bad_settings_are_a_problem_and_all_else_is_checked(
    arguments: list[str], variables: dict[str, str], said: str
) -> None:
    status, sections = found(*arguments, **variables)
    assert status == 1
    assert said in sections["settings"]["settings"]["text"]
    assert sections["cpu"]["CPU"]["threads"] >= 1


def test_an_unsigned_version_is_a_problem_if_there_are_trusted_keys(tmp_path: Path) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    trusted = public_key(new_key(tmp_path / "key.pem"))
    status, sections = found("--repository", tmp_path / "models", "--trusted-keys", trusted)
    assert status == 1
    assert sections["security"]["trusted keys"]["status"] == "ok"
    assert trusted.name in sections["security"]["trusted keys"]["text"]
    assert "model.sig" in sections["model repository"]["tiny version 1"]["text"]


def test_trusted_keys_that_cannot_be_read_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text("no key")
    status, sections = found("--trusted-keys", tmp_path / "key.pub")
    assert status == 1
    assert "key.pub" in sections["security"]["trusted keys"]["text"]


def test_single_models_are_checked_in_place_of_a_repository(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    (tmp_path / "other.onnx").write_bytes(tiny_onnx(softmax=False))
    models = ["--model", f"tiny={tmp_path / 'tiny' / '1'}", "--model", f"plain={tmp_path / 'other.onnx'}"]
    status, sections = found(*models)
    assert status == 0
    assert "self-test passed" in sections["model repository"]["tiny version 1"]["text"]
    assert "unverified" in sections["model repository"]["plain version 1"]["text"]
    assert sections["memory"]["memory"]["models_bytes"] > 0


def test_a_port_in_use_is_named_with_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, sections = found("--http-port", str(port))
    assert status == 1
    assert sections["ports"]["http port"]["status"] == "problem"
    assert str(port) in sections["ports"]["http port"]["text"]
    assert "--http-port" in sections["ports"]["http port"]["fix"]
    assert sections["ports"]["grpc port"]["status"] == "ok"


def test_the_text_fits_into_80_columns_and_has_every_fix(tmp_path: Path) -> None:
    write_version(tmp_path / "tiny" / "1")
    (tmp_path / "a\x1b[31m\nb").mkdir()
    status, output = doctor("--model-repository", tmp_path, "--device", "cuda", "--grpc-port", "0", "--http-port", "0")
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) <= 80
    assert output.splitlines()[-1].startswith(("0 problems", "1 problem,")) == (status == 0)


def test_every_module_of_the_server_may_be_missing(tmp_path: Path) -> None:
    blocked = ("onnxruntime", "PIL", "starlette", "uvicorn", "uvloop", "prometheus_client", "grpc_health", "torch")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {(*blocked, 'cnnserve_export', 'cnnserve_client')!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
    )
    write_version(tmp_path / "models" / "tiny" / "1")
    status, sections = found("--model-repository", tmp_path / "models", PYTHONPATH=before_site_packages(tmp_path))
    assert status == 1
    assert {"pillow", "uvicorn"} <= {*sections["software"]["packages"]["missing"]}
    assert sections["software"]["packages"]["fix"] == 'pip install "cnnserve[cpu]"'
    assert sections["execution providers"]["ONNX Runtime"]["status"] == "problem"
    assert sections["model repository"]["tiny version 1"]["text"] == "files match the digests in the manifest"


def test_a_library_that_ends_its_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    status, sections = found(PYTHONPATH=before_site_packages(tmp_path))
    assert status == 1
    assert "signal 11" in sections["execution providers"]["ONNX Runtime"]["text"]
