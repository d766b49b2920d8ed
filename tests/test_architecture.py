"""Every import contract of pyproject.toml is kept, and refuses what it is there to refuse."""

import os
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from linting import Linter, linter

ROOT = Path(__file__).parent.parent
PACKAGES = ("server/cnnserve", "export/cnnserve_export", "client/cnnserve_client")
# By contract: a module, and an import that it must not have.
FORBIDDEN = [
    ("rooms", "cnnserve.images.header", "import cnnserve.model_config.settings"),
    ("rooms", "cnnserve.repository.show", "import cnnserve.batching.batcher"),
    ("rooms", "cnnserve.app", "import cnnserve.trust.keys"),
    ("rooms", "cnnserve.cli", "import cnnserve.trust.keys"),
    ("rooms", "cnnserve.app", "import cnnserve.tools"),
    ("rooms", "cnnserve.registry.control", "import cnnserve.sources.pull"),
    ("rooms", "cnnserve.app", "import cnnserve.sources.pull"),
    ("sources", "cnnserve.sources.pull", "import cnnserve.transports.lull"),
    ("sources", "cnnserve.sources.pull", "import grpc"),
    ("fsspec", "cnnserve.sources.choice", "import fsspec"),
    ("server", "cnnserve.sources.command", "import cnnserve_client.errors"),
    ("server", "cnnserve.sources.command", "import torch"),
    ("server", "cnnserve.doctor.cli", "import cnnserve_client.errors"),
    ("transports", "cnnserve.transports.http.routes", "import cnnserve.transports.grpcio"),
    ("transports", "cnnserve.transports.lull", "import cnnserve.transports.http.routes"),
    ("server", "cnnserve.model.loader", "import cnnserve_export.contract"),
    ("server", "cnnserve.model.loader", "import torch"),
    ("client", "cnnserve_client.images", "from cnnserve.json_text import loads"),
    ("client", "cnnserve_client.images", "import PIL"),
    ("client-layers", "cnnserve_client.errors", "import cnnserve_client.client"),
    ("client-commands", "cnnserve_client.commands.terminal", "import cnnserve_client.commands.cli"),
    ("grpc", "cnnserve.api.status", "import grpc"),
    ("prometheus", "cnnserve.registry.snapshot", "import prometheus_client"),
    ("nvml", "cnnserve.transports.http.exposition", "import pynvml"),
    ("opentelemetry", "cnnserve.api.observing", "import opentelemetry"),
    ("ray", "cnnserve.transports.ray_calls", "import ray"),
    ("rooms", "cnnserve.assembly.parts", "import cnnserve.transports.ray_calls"),
    ("onnxruntime", "cnnserve.runtime.workers", "import onnxruntime"),
    ("pillow", "cnnserve.model.loader", "import PIL"),
    ("opencv", "cnnserve.images.geometry", "import cv2"),
    ("signatures", "cnnserve.repository.signature", "import cryptography"),
    ("signatures", "cnnserve_export.publish", "import model_signing"),
    ("protobuf", "cnnserve.batching.policy", "import cnnserve.wire.model_config_pb2"),
    ("protobuf", "cnnserve.process.cpu", "import google"),
    ("protobuf", "cnnserve.access.guard", "import google"),
    ("rooms", "cnnserve.access.guard", "import cnnserve.api.status"),
]
# By contract: a module that no layer of it names.
UNLISTED = [
    ("rooms", "cnnserve.attic"),
    ("transports", "cnnserve.transports.attic"),
    ("client-layers", "cnnserve_client.attic"),
    ("client-commands", "cnnserve_client.commands.attic"),
]


def test_ten_files_at_most_stand_beside_the_rooms() -> None:
    beside = [path.name for path in (ROOT / "server" / "cnnserve").iterdir() if path.is_file()]
    assert len(beside) <= 10, beside


def test_each_room_says_in_one_sentence_what_lives_there() -> None:
    for room in (ROOT / "server" / "cnnserve").iterdir():
        if room.is_dir() and room.name not in ("__pycache__", "wire"):
            assert (room / "__init__.py").read_text().startswith('"""'), room


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def lint(packages: Path) -> Iterator[Linter]:
    # Wide: a report that is broken into lines cannot be searched.
    environment = os.environ | {"PYTHONPATH": str(packages), "COLUMNS": "200"}
    with linter(packages, ROOT / "pyproject.toml", environment) as lint:
        yield lint


@contextmanager
def written(packages: Path, module: str, code: str) -> Iterator[None]:
    """The copy with some more code at the end of a module, which may be a new one."""
    path = packages.joinpath(*module.split(".")).with_suffix(".py")
    before = path.read_text() if path.exists() else None
    path.write_text(f"{before or ''}\n{code}\n")
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)


def contract_ids() -> list[str]:
    """Those of pyproject.toml."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [contract["id"] for contract in config["tool"]["importlinter"]["contracts"]]


def test_all_contracts_are_kept(lint: Linter) -> None:
    code, report = lint()
    assert f"Contracts: {len(contract_ids())} kept, 0 broken." in report
    assert code == 0


def test_each_contract_is_tried() -> None:
    assert {contract for contract, *_ in FORBIDDEN} == set(contract_ids())


@pytest.mark.parametrize(("contract", "module", "statement"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(
    packages: Path, lint: Linter, contract: str, module: str, statement: str
) -> None:
    with written(packages, module, statement):
        code, report = lint(contract)
    assert "Contracts: 0 kept, 1 broken." in report
    assert f"{module} -> {statement.split()[1]} (l." in report
    assert code == 1


@pytest.mark.parametrize(("contract", "module"), UNLISTED)
def test_a_module_that_no_layer_names_breaks_its_contract(
    packages: Path, lint: Linter, contract: str, module: str
) -> None:
    with written(packages, module, '"""New."""'):
        code, report = lint(contract)
    assert "Contracts: 0 kept, 1 broken." in report
    assert f"- {module}\n" in report
    assert code == 1
