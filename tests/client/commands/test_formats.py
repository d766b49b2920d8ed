"""The formats of results: the table for people, JSON and CSV for programs."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve_client import Class, ImageResult, InvalidInputError
from cnnserve_client.commands import terminal
from cnnserve_client.commands.formats import Csv, JsonLines, Table

TWO = ImageResult((Class(7, "seven", 0.99834), Class(1, "one", 0.0012)), version="2")
BAD = ImageResult(error=InvalidInputError("cannot decode"))


def table(*results, room=None, colours=False, with_failures=True) -> str:
    form = Table(room, colours=colours, with_failures=with_failures)
    return "".join([form.head(), *(form.record(*result) for result in results), form.rest()])


def test_the_table_is_aligned_and_names_each_file_once():
    assert table(("a.png", TWO), ("broken.png", BAD)) == (
        "FILE        RANK  PROBABILITY  LABEL\n"
        "a.png          1       99.83%  seven\n"
        "               2        0.12%  one\n"
        "broken.png     -            -  error: cannot decode\n"
    )


def test_a_terminal_that_tells_errors_anyway_has_none_in_the_table():
    assert "decode" not in table(("a.png", TWO), ("broken.png", BAD), with_failures=False)
    assert table(("broken.png", BAD), with_failures=False) == ""


def test_a_class_without_a_label_shows_its_index():
    assert table(("a", ImageResult((Class(42, "", 1.0),)))).endswith("100.00%  class 42\n")


@given(
    st.lists(st.tuples(st.text(max_size=90), st.text(max_size=90)), min_size=1, max_size=5),
    st.integers(40, 120),
)
def test_no_line_is_wider_than_the_terminal_or_drives_it(rows, room):
    lines = table(*((name, ImageResult((Class(0, label, 0.5),))) for name, label in rows), room=room).splitlines()
    assert len(lines) == 1 + len(rows)
    for line in lines:
        assert terminal.width(line) <= room
        assert line.isprintable()


def test_names_are_cut_at_their_start_and_labels_at_their_end():
    result = ImageResult((Class(0, "a label that goes on and on and on and on", 0.5),))
    line = table(("photos/of/a/very/deep/folder/with/a/long/name/cat.png", result), room=60).splitlines()[1]
    assert line.startswith("…")
    assert "name/cat.png" in line
    assert line.endswith("…")


def test_a_long_table_starts_before_it_is_complete():
    form = Table(None, colours=False, with_failures=True)
    parts = [form.record(f"{number}.png", TWO) for number in range(300)]
    assert not any(parts[:99])
    assert parts[99].startswith("FILE")
    assert all(parts[99:])
    assert form.rest() == ""
    starts = {line.index("%") for part in parts for line in part.splitlines() if "%" in line}
    assert len(starts) == 1


def test_only_the_heading_has_a_colour():
    lines = table(("a.png", TWO), colours=True).splitlines()
    assert lines[0] == "\x1b[1mFILE   RANK  PROBABILITY  LABEL\x1b[0m"
    assert "\x1b" not in "".join(lines[1:])


def test_a_line_of_json_has_everything():
    form = JsonLines("digits")
    lines = [form.record("a\x1b\n\udcff", TWO), form.record("b", BAD)]
    assert all(line.count("\n") == 1 for line in lines)
    assert [json.loads(line) for line in lines] == [
        {
            "file": "a\x1b\n\udcff",
            "model": "digits",
            "version": "2",
            "classes": [
                {"index": 7, "label": "seven", "probability": 0.99834},
                {"index": 1, "label": "one", "probability": 0.0012},
            ],
        },
        {
            "file": "b",
            "model": "digits",
            "version": "",
            "error": {"code": "INVALID_ARGUMENT", "message": "cannot decode"},
        },
    ]


@pytest.mark.parametrize("name", ["a.png", 'odd, "name"\n.png', "数字.png"])
def test_csv_has_a_row_for_each_class(name):
    form = Csv()
    rows = list(csv.reader(io.StringIO(form.head() + form.record(name, TWO) + form.record("b", BAD) + form.rest())))
    assert rows == [
        ["file", "version", "rank", "index", "label", "probability", "error"],
        [name, "2", "1", "7", "seven", "0.99834", ""],
        [name, "2", "2", "1", "one", "0.0012", ""],
        ["b", "", "", "", "", "", "cannot decode"],
    ]
