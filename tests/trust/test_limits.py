"""Kind: limits that a manifest sets itself, and manifests that can be understood in two ways."""

import json
import re
from pathlib import Path

import pytest

from cnnserve.repository import manifest as manifests
from spoiled_manifests import BOTH, MIB, SECOND, grow, more_images
from spoiling import Spoiling, lenet5, refusal


@pytest.mark.parametrize("spoiling", BOTH, ids=str)
@pytest.mark.parametrize("schema", [1, 2])
def test_no_spoiled_manifest_is_served(tmp_path: Path, spoiling: Spoiling, schema: int) -> None:
    check(tmp_path, spoiling, schema)


@pytest.mark.parametrize("spoiling", SECOND, ids=str)
def test_no_spoiled_manifest_of_schema_2_is_served(tmp_path: Path, spoiling: Spoiling) -> None:
    check(tmp_path, spoiling, 2)


def check(tmp_path: Path, spoiling: Spoiling, schema: int) -> None:
    folder = lenet5(tmp_path, schema=schema)
    spoiling.change(folder)
    said = refusal(folder)
    assert said, "it was served"
    assert re.search(spoiling.said, said), said
    assert len(said) < 600


@pytest.mark.parametrize("schema", [1, 2])
def test_what_is_not_spoiled_is_served(tmp_path: Path, schema: int) -> None:
    folder = lenet5(tmp_path, schema=schema)
    assert refusal(folder) == ""
    # A manifest may be laid out in other ways, up to the limit.
    (folder / "manifest.json").write_text(json.dumps(json.loads((folder / "manifest.json").read_text()), indent=1))
    grow(folder, 8 * MIB)
    assert refusal(folder) == ""


def test_32_images_are_served(tmp_path: Path) -> None:
    folder = lenet5(tmp_path)
    more_images(32)(folder)
    assert refusal(folder) == ""
    manifest = manifests.read(folder)
    assert manifest is not None
    assert len(manifest.golden.images) == 32
