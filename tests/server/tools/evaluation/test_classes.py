"""Names of folders as classes of a model."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.tools.evaluation.classes import ClassNames


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique=True))
def test_every_label_that_no_other_one_looks_like_is_found(labels: list[str]) -> None:
    names = ClassNames(labels, len(labels))
    shown = [unicodedata.normalize("NFC", label).strip() for label in labels]
    for index, label in enumerate(labels):
        assert names.find(label) == (index if shown.count(shown[index]) == 1 else None)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tabby cat", 0),
        ("Tabby_Cat", 0),
        ("cafe\u0301", 1),
        ("Cat", 3),
        ("CAT", None),
        ("crane", None),
        ("0", None),
        ("dog", None),
    ],
)
def test_names_that_look_like_one_label(name: str, index: int | None) -> None:
    labels = ["tabby cat", "caf\u00e9", "cat", "Cat", "crane", "crane"]
    assert ClassNames(labels, len(labels)).find(name) == index


@pytest.mark.parametrize(
    ("name", "index"), [("0", 0), ("01", 1), ("2", 2), ("3", None), ("-1", None), ("²", None), ("٢", None), ("", None)]
)
def test_without_labels_names_are_numbers(name: str, index: int | None) -> None:
    assert ClassNames([], 3).find(name) == index
    assert ClassNames(["2", "1", "0"], 3, by_index=True).find(name) == index


def test_digits_as_labels_are_labels() -> None:
    assert ClassNames(["2", "1", "0"], 3).find("2") == 0
