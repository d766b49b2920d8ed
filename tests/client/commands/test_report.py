"""Reports of models, for people and for programs."""

import json

from hypothesis import given
from hypothesis import strategies as st

from cnnserve_client import ModelInfo, VersionInfo
from cnnserve_client.commands import report as r


def test_wide_characters_keep_the_columns():
    first, wide, narrow = r.table(("A", "B"), [("数字", "x"), ("ab", "y")]).split("\n")
    assert (first, wide, narrow) == ("A     B", "数字  x", "ab    y")


@given(st.text())
def test_no_text_drives_the_terminal(text):
    assert r.printable(text).isprintable()


def test_controls_are_escaped_and_letters_kept():
    assert r.printable("Größe\x1b[2J\n\u202e\udcff") == "Größe\\x1b[2J\\n\\u202e\\udcff"


def test_a_model_without_versions_has_a_line():
    models = [
        ModelInfo("empty", (), "no version folder"),
        ModelInfo("bad", (VersionInfo("1", "UNAVAILABLE", "altered\n"),)),
    ]
    assert r.models_table(models) == (
        "NAME   VERSION  STATE        INPUT  CLASSES  MAX BATCH  VERIFIED\n"
        "empty  -        -            -            -          -  -\n"
        "    no version folder\n"
        "bad    1        UNAVAILABLE  -            -          -  -\n"
        "    altered\\n"
    )


def test_labels_with_their_indices():
    labels = ("zero", "one\x1b")
    assert r.labels_table(labels) == "INDEX  LABEL\n    0  zero\n    1  one\\x1b"
    assert json.loads(r.labels_json(labels)) == [{"index": 0, "label": "zero"}, {"index": 1, "label": "one\x1b"}]


def test_no_line_of_the_models_is_wider_than_80_columns():
    reason = "file model.onnx has 537 bytes, the manifest says 1074; copy or export the version again"
    table = r.models_table([ModelInfo("bad", (VersionInfo("1", "UNAVAILABLE", reason),))])
    assert max(map(len, table.splitlines())) <= 80
    assert " ".join(" ".join(table.splitlines()[2:]).split()) == reason
    assert "  REASON\n" in r.models_table([ModelInfo("bad", (VersionInfo("1", "LOADING", "short"),))])
