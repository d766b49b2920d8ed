"""The numbers and labels with which a request may name a version."""

import logging
import os
from pathlib import Path

import pytest

from cnnserve.errors import VersionNotFound
from cnnserve.registry.lifecycle import ModelEntry, VersionEntry, VersionLabels
from cnnserve.registry.version_labels import parse_labels, read_labels, resolve
from cnnserve.repository.folders import model_folder


def test_labels_by_word() -> None:
    assert parse_labels('{"stable": 3, "canary": "4", "next-2.1_b": 3}') == {"canary": 4, "next-2.1_b": 3, "stable": 3}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[3]", "holds a list"),
        ('{"stable": "new"}', "'stable' stands for 'new'"),
        ('{"stable": 0}', "stands for 0"),
        ('{"stable": 3.0}', "stands for 3.0"),
        ('{"stable": true}', "stands for True"),
        ('{"stable": null}', "stands for None"),
        ('{"stable": [3]}', "stands for"),
        ("[" * 200_000, "nested too deeply"),
        ('{"3": 3}', "'3' is not a label"),
        ('{"+3": 3}', "is not a label"),
        ('{"٣": 3}', "is not a label"),
        ('{"": 3}', "is not a label"),
        ('{"a b": 3}', "is not a label"),
    ],
)
def test_a_broken_file_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_labels(text)


def test_resolve() -> None:
    entry = ModelEntry("m")
    for number in (3, 10):
        entry.put(VersionEntry(number))
    entry.labels = VersionLabels({"stable": 3, "old": 2})
    assert [resolve(entry, text) for text in ("3", "10", "stable")] == [3, 10, 3]
    for text, said in {
        "4": "model 'm' has no version 4; it has 3, 10 (labels: stable, old)",
        "old": "model 'm' has no version 2, for which the label 'old' stands; it has 3, 10 (labels: stable, old)",
        "03": "model 'm' has no version '03', which is neither a version number nor a label; "
        "it has 3, 10 (labels: stable, old)",
    }.items():
        with pytest.raises(VersionNotFound) as caught:
            resolve(entry, text)
        assert str(caught.value) == said
    with pytest.raises(VersionNotFound) as caught:
        resolve(entry, "x" * 1_000_000)
    assert len(str(caught.value)) < 300


def test_the_file_is_read_when_it_changes_and_the_last_good_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "version_labels.json"
    folder = model_folder(tmp_path)
    none = read_labels(folder, VersionLabels())
    assert none == VersionLabels()
    file.write_text('{"stable": 1}')
    first = read_labels(folder, none)
    assert first.versions == {"stable": 1}
    assert read_labels(folder, first) is first
    file.write_text('{"stable": ')
    os.utime(file, ns=(1, 1))
    with caplog.at_level(logging.ERROR):
        broken = read_labels(folder, first)
        assert read_labels(folder, broken) is broken
    assert broken.versions == {"stable": 1}
    assert len(caplog.records) == 1
    assert "version_labels.json is ignored" in caplog.text
    file.write_text('{"stable": 2}')
    repaired = read_labels(folder, broken)
    assert repaired.versions == {"stable": 2}
    file.unlink()
    assert read_labels(folder, repaired) == VersionLabels()
