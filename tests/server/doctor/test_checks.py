"""The single checks of `cnnserve doctor`, on machines that are folders."""

import base64
import hashlib
import socket
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.doctor import child, devices, machine, report, software
from cnnserve.doctor.findings import Context, Finding, Status, parted
from support import write_version

ROOT = Path(__file__).resolve().parents[3]
NO_CGROUP = Path("/nonexistent")


def install(site: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    """Installs a wheel as pip does: its files, and their digests in RECORD."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    record = []
    for path, data in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        record.append(f"{path},sha256={digest},{len(data)}")
    (info / "RECORD").write_text("\n".join(record) + "\n")


def runtime(size: int) -> dict[str, bytes]:
    return {"onnxruntime/__init__.py": b"1", "onnxruntime/capi/state.so": b"x" * size}


def test_two_runtimes_that_overwrite_each_other_are_told_with_the_one_that_lies_here(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-gpu", "1.31.1", runtime(30))
    install(tmp_path, "onnxruntime", "1.32.0", runtime(20))
    install(tmp_path, "onnxruntime-extensions", "0.13", {"onnxruntime_extensions/__init__.py": b""})
    found = software.onnxruntime(software.distributions([str(tmp_path)]), "gpu")
    assert found.status is Status.PROBLEM
    assert found.text == (
        "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 overwrite each other's files; the files here are those of "
        "onnxruntime 1.32.0"
    )
    assert found.fix == 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "cnnserve[gpu]"'


def test_a_runtime_whose_files_another_took_along_is_told(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0", runtime(20))
    (tmp_path / "onnxruntime/capi/state.so").unlink()
    found = software.onnxruntime(software.distributions([str(tmp_path)]), "cpu")
    assert found.status is Status.PROBLEM
    assert "onnxruntime/capi/state.so" in found.text
    assert found.fix == "pip install --force-reinstall --no-deps onnxruntime==1.32.0"


def test_a_port_that_is_taken_is_told_as_the_server_tells_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        settings = {"host": "127.0.0.1", "grpc_port": 0, "http_port": 70000, "health_http_port": number}
        free, busy = machine.ports(Context(settings))
    assert (free.name, free.status) == ("grpc port", Status.OK)
    assert (busy.name, busy.status) == ("health http port", Status.PROBLEM)
    assert busy.text == f"cannot listen on 127.0.0.1:{number} (health_http_port): another process uses this port"
    assert busy.fix == "choose another one, or --health-http-port 0 for a free one"


def test_one_whole_runtime_and_none(tmp_path: Path) -> None:
    assert software.onnxruntime(software.distributions([str(tmp_path)]), "cpu").fix == 'pip install "cnnserve[cpu]"'
    install(tmp_path, "onnxruntime-gpu", "1.31.1", runtime(20))
    found = software.onnxruntime(software.distributions([str(tmp_path)]), "gpu")
    assert (found.status, found.text) == (Status.OK, "onnxruntime-gpu 1.31.1")


def test_the_modules_of_the_server_are_those_of_its_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(software.SERVER_MODULES.values()) == sorted(line.partition(">")[0] for line in extras["server"])


@pytest.mark.parametrize(
    ("file", "text", "membership"),
    [("cpu.max", "100000 100000", "0::/"), ("cpu/cpu.cfs_quota_us", "100000", "1:cpu:/")],
)
def test_the_cpu_budget_names_its_cgroup(tmp_path: Path, file: str, text: str, membership: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    (tmp_path / file).with_name("cpu.cfs_period_us").write_text("100000")
    (tmp_path / "membership").write_text(membership)
    (found,) = machine.cpus(Context({"cpu_threads": 0}), tmp_path, tmp_path / "membership")
    assert found.status is Status.OK
    assert f"a cgroup quota of 1 CPUs ({(tmp_path / file).parent})" in found.text
    (found,) = machine.cpus(Context({"cpu_threads": 4}), tmp_path, tmp_path / "membership")
    assert found.status is Status.WARNING


@pytest.mark.parametrize(
    ("mib", "status", "fix"),
    [(40, "problem", "raise the memory limit to"), (100, "warning", "or lower"), (2000, "ok", "")],
)
def test_the_memory_limit_is_compared_with_the_models(tmp_path: Path, mib: int, status: str, fix: str) -> None:
    write_version(tmp_path / "models" / "tiny" / "1")
    (tmp_path / "memory.max").write_text(str(mib * 2**20))
    context = Context({"repository": tmp_path / "models"})
    (found,) = machine.memory(context, tmp_path, NO_CGROUP)
    assert found.status.value == status
    assert fix in found.fix
    assert str(tmp_path / "memory.max") in found.text
    assert found.data["models_bytes"] >= (tmp_path / "models/tiny/1/model.onnx").stat().st_size


def test_a_gpu_without_a_driver_is_told(tmp_path: Path) -> None:
    (tmp_path / "pci" / "0000:01:00.0").mkdir(parents=True)
    (tmp_path / "pci" / "0000:01:00.0" / "vendor").write_text("0x10de\n")
    (tmp_path / "pci" / "0000:01:00.0" / "class").write_text("0x030200\n")
    (found,) = devices.driver(Context({"device": "cuda"}), tmp_path / "pci", tmp_path / "version")
    if found.status is Status.OK:
        pytest.skip("this machine has a driver")
    assert found.status is Status.PROBLEM
    assert found.text.startswith("1 NVIDIA GPU on the PCI bus")
    assert "install the NVIDIA driver" in found.fix


def test_a_child_that_takes_too_long_is_ended() -> None:
    with pytest.raises(child.ChildFailed, match="did not end within 0 s"):
        list(child.run("providers", {}, lambda _: 0.0))


def test_a_child_that_fails_tells_its_last_line() -> None:
    with pytest.raises(child.ChildFailed, match="status 1: KeyError: 'nonsense'"):
        list(child.run("nonsense", {}, lambda _: 60.0))


def test_errors_come_in_two_parts() -> None:
    assert parted("it broke; it fell; mend it") == ("it broke; it fell", "mend it")
    assert parted("it broke", "mend it") == ("it broke", "mend it")


@given(st.lists(st.tuples(st.text(max_size=50), st.sampled_from(Status), st.text(max_size=300), st.text(max_size=90))))
def test_every_text_fits_into_80_columns(raw: list[tuple[str, Status, str, str]]) -> None:
    text = report.as_text({"section": [Finding(*one) for one in raw]})
    assert max(map(len, text.split("\n"))) <= 80
    assert all(character.isprintable() for character in text.replace("\n", ""))
