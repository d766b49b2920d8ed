"""Which versions of a model's folder are to be served, and why there are none."""

from pathlib import Path

import pytest

from cnnserve.errors import ModelNotFound
from cnnserve.registry import wanted_versions
from cnnserve.registry.lifecycle import VersionLabels
from cnnserve.registry.wanted_versions import Plan
from support import as_other_user

SPECIFIC = "version_policy { specific { versions: [ 1, 7 ] } }"
ALL = "version_policy { all {} }"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version in (1, 2, 10):
        (tmp_path / "m" / str(version)).mkdir(parents=True)
        (tmp_path / "m" / str(version) / "model.onnx").write_bytes(b"x" * version)
    return tmp_path


def plan(root: Path, *available: int, config: str = "", config_name: str = "") -> Plan:
    return wanted_versions.read(root, "m", VersionLabels(), available or None, config=config, config_name=config_name)


@pytest.mark.parametrize(
    ("config", "available", "chosen"),
    [
        (None, (), [10]),
        (None, (1, 2), [2]),
        (ALL, (), [1, 2, 10]),
        (ALL, (10, 1), [1, 10]),
        (SPECIFIC, (), [1]),
        ("version_policy { latest { num_versions: 2 } }", (), [2, 10]),
        # The newest version loads, and fails with the reason.
        ("no_such_field: 1", (), [10]),
        ("no_such_field: 1", (1, 2), [2]),
    ],
)
def test_the_policy_chooses_among_the_versions_that_are_there(
    root: Path, config: str | None, available: tuple[int, ...], chosen: list[int]
) -> None:
    if config is not None:
        (root / "m" / "config.pbtxt").write_text(config)
    found = plan(root, *available)
    assert (list(found.chosen), found.reason) == (chosen, "")
    assert found.folder.name == "m"


def test_files_are_looked_at_version_by_version(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text(ALL)
    before = plan(root).chosen
    assert plan(root).chosen == before
    (root / "m" / "2" / "model.onnx").write_bytes(b"changed")
    after = plan(root).chosen
    assert [version for version in before if before[version] != after[version]] == [2]


def test_why_there_are_none(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text("version_policy { specific { versions: [ 7 ] } }")
    found = plan(root)
    assert found.chosen == {}
    assert "names none of the versions 1, 2, 10" in found.reason
    assert "names none of the versions 1, 10" in plan(root, 1, 10).reason
    assert plan(root, 3).chosen == {}
    assert "version 10 is not complete yet" in plan(root, 3).reason
    (root / "m" / "4").mkdir()
    (root / "n").mkdir()
    empty = wanted_versions.read(root, "n", VersionLabels())
    assert empty.chosen == {}
    assert "no version folder" in empty.reason


def test_without_more_the_folders_own_config_counts(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text(SPECIFIC)
    found = wanted_versions.read(root, "m", VersionLabels())
    assert (list(found.chosen), found.folder.config, found.folder.config_file) == ([1], "", "")


def test_a_model_that_is_not_there(root: Path) -> None:
    with pytest.raises(ModelNotFound):
        wanted_versions.read(root, "nobody", VersionLabels())


def test_a_config_that_a_load_brings_replaces_the_file(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text(ALL)
    found = plan(root, config='{"version_policy": {"specific": {"versions": [2]}}}')
    assert list(found.chosen) == [2]
    assert found.folder.config
    assert plan(root).chosen[2] != found.chosen[2]


def test_a_named_config_replaces_the_usual_one(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text(ALL)
    (root / "m" / "configs").mkdir()
    (root / "m" / "configs" / "one.pbtxt").write_text(SPECIFIC)
    assert list(plan(root, config_name="one").chosen) == [1]
    assert list(plan(root, config_name="other").chosen) == [1, 2, 10]


def test_labels_are_read_and_those_of_before_are_kept(root: Path) -> None:
    assert plan(root).labels == VersionLabels()
    (root / "m" / "version_labels.json").write_text('{"stable": 2}')
    labels = plan(root).labels
    assert labels.versions == {"stable": 2}
    # The file did not change, so it was not read again.
    assert wanted_versions.read(root, "m", labels).labels is labels


def test_a_folder_that_cannot_be_read_keeps_its_labels(root: Path) -> None:
    (root / "m" / "version_labels.json").write_text('{"stable": 2}')
    labels = plan(root).labels
    (root / "m").chmod(0o000)
    try:
        with as_other_user():
            found = wanted_versions.read(root, "m", labels)
    finally:
        (root / "m").chmod(0o755)
    assert found.labels is labels
    assert "cannot be read" in found.reason


def test_a_labelled_version_is_enough(root: Path) -> None:
    (root / "m" / "config.pbtxt").write_text("version_policy { specific { versions: [ 7 ] } }")
    (root / "m" / "version_labels.json").write_text('{"stable": 2}')
    found = plan(root)
    assert (list(found.chosen), found.reason) == ([2], "")
