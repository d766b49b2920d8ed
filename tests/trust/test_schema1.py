"""Versions of schema 1: still served, held to the limits of the server, and marked."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnserve.repository import manifest as manifests
from cnnserve_client import Client
from spoiling import SCHEMA_1, lenet5
from support import RunningServer, as_schema_1, golden_rows, serving, write_version


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    root = tmp_path_factory.mktemp("models")
    lenet5(root, schema=1)
    write_version(root / "tiny" / "1")
    with serving(tmp_path_factory.mktemp("log") / "server.log", root) as server:
        yield server


def test_it_is_served_and_marked(server: RunningServer) -> None:
    with Client(server.address) as client:
        versions = {model.name: model.versions[0] for model in client.list_models()}
        assert {name: version.contract for name, version in versions.items()} == {"lenet5": 1, "tiny": 2}
        assert client.get_model("lenet5").versions[0].contract == 1
        assert versions["lenet5"].verified
        result = client.classify(SCHEMA_1 / "lenet5" / "1" / "golden.png", model="lenet5", top_k=1)
    assert result.results[0].top.label == "3"
    server.wait_for(r"model lenet5 version 1 READY in .*; contract 1")
    server.wait_for(r"model tiny version 1 READY in .*; contract 2")


def test_its_golden_probabilities_are_those_of_schema_2(tmp_path: Path) -> None:
    folder = write_version(tmp_path / "tiny" / "1")
    before, rows = manifests.read(folder), golden_rows(folder)
    after = manifests.read(as_schema_1(folder))
    assert before is not None
    assert after is not None
    np.testing.assert_array_equal(golden_rows(folder), rows)
    assert (after.schema, after.golden.log_tolerance, after.golden.images) == (1, None, before.golden.images)
    assert after.preprocessing == before.preprocessing


def test_it_is_written_in_schema_2_only(tmp_path: Path) -> None:
    manifest = manifests.read(lenet5(tmp_path, schema=1))
    assert manifest is not None
    with pytest.raises(ValueError, match="a manifest of schema 1 is not written, only of schema 2"):
        manifests.to_json(manifest)
    assert "inline" not in manifests.document(manifest)["golden"]


def test_unknown_fields_of_schema_1_are_ignored_as_before(tmp_path: Path) -> None:
    folder = lenet5(tmp_path, schema=1)
    text = (folder / "manifest.json").read_text()
    before = manifests.parse(text)
    assert manifests.parse(text.replace('"golden": {', '"later": 1, "golden": {"seen": true,')) == before
