"""What a person sees and what a program reads."""

import json

from hypothesis import given
from hypothesis import strategies as st

from cnnserve_client import Class, ImageResult, InvalidInputError, ModelInfo, Timings, VersionInfo
from cnnserve_client import report as r
from cnnserve_client.files import FilesReport


def of(*results: tuple[str, ImageResult]) -> FilesReport:
    return FilesReport("digits", "1", Timings(1, 2, 3, 6), results)


TWO = ImageResult((Class(7, "seven", 0.99834), Class(1, "one", 0.0012)))
BAD = ImageResult(error=InvalidInputError("cannot decode"))


def test_the_table_is_aligned_and_names_each_file_once():
    assert r.classification_table(of(("a.png", TWO), ("broken.png", BAD))) == (
        "FILE        RANK  PROBABILITY  LABEL\n"
        "a.png          1       99.83%  seven\n"
        "               2        0.12%  one\n"
        "broken.png     -            -  error: cannot decode"
    )


def test_a_class_without_a_label_shows_its_index():
    assert r.classification_table(of(("a", ImageResult((Class(42, "", 1.0),))))).endswith("100.00%  class 42")


def test_wide_characters_keep_the_columns():
    first, wide, narrow = r.table(("A", "B"), [("数字", "x"), ("ab", "y")]).split("\n")
    assert (first, wide, narrow) == ("A     B", "数字  x", "ab    y")


@given(st.text())
def test_no_text_drives_the_terminal(text):
    assert r.printable(text).isprintable()


def test_controls_are_escaped_and_letters_kept():
    assert r.printable("Größe\x1b[2J\n\u202e\udcff") == "Größe\\x1b[2J\\n\\u202e\\udcff"


def test_the_document_has_every_result():
    assert json.loads(r.classification_json(of(("a\x1b\udcff", TWO), ("b", BAD)))) == {
        "model": "digits",
        "version": "1",
        "timings": {"queue_us": 1, "preprocess_us": 2, "compute_us": 3, "total_us": 6},
        "images": [
            {
                "file": "a\x1b\udcff",
                "classes": [
                    {"index": 7, "label": "seven", "probability": 0.99834},
                    {"index": 1, "label": "one", "probability": 0.0012},
                ],
            },
            {"file": "b", "error": {"code": "INVALID_ARGUMENT", "message": "cannot decode"}},
        ],
    }


def test_a_model_without_versions_has_a_line():
    models = [ModelInfo("empty", ()), ModelInfo("bad", (VersionInfo("1", "UNAVAILABLE", "altered\n"),))]
    assert r.models_table(models) == (
        "NAME   VERSION  STATE        INPUT  CLASSES  MAX BATCH  VERIFIED  REASON\n"
        "empty  -        -            -            -          -  -\n"
        "bad    1        UNAVAILABLE  -            -          -  -         altered\\n"
    )
