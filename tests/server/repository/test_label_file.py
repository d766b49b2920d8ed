"""Label files as people and programs write them."""

from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.label_file import doubt, read_labels
from cnnserve.repository.tree import Tree


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"", ()),
        (b"\n", ("",)),
        (b"cat", ("cat",)),
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
        (b"cat\rdog\r", ("cat", "dog")),
        # Only the last line may be empty without being a label.
        (b"cat\n\ndog\n\n", ("cat", "", "dog", "")),
        (b"\xef\xbb\xbfcat\n", ("cat",)),
        ("Kätzchen\n猫\n".encode(), ("Kätzchen", "猫")),
        # These end a line for str.splitlines only.
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\n".encode(), ("a\x0bb\x0cc\x1cd\x85e\u2028f",)),
        (b"  cat \n", ("  cat ",)),
    ],
)
def test_a_line_is_a_label(tmp_path: Path, data: bytes, labels: tuple[str, ...]) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    assert read_labels("labels.txt", Tree(tmp_path).read) == labels


def test_a_file_that_is_missing_or_unreadable_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    (tmp_path / "folder.txt").mkdir()
    for name, said in (
        ("none.txt", "is missing"),
        ("latin.txt", "cannot be read: .*utf-8"),
        ("folder.txt", "is not a file but a folder"),
    ):
        with pytest.raises(ModelLoadFailed, match=rf"{name} {said}") as caught:
            read_labels(name, Tree(tmp_path).read)
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((), ""),
        (("cat",), ""),
        (("",), "all 1 labels are empty"),
        (("", " "), "all 2 labels are empty"),
        (("cat", "cat"), "all 2 labels are 'cat'"),
        (("c" * 81, "c" * 81), f"all 2 labels are '{'c' * 80}'"),
        (("cat", "cat", "dog"), ""),
        (("", "cat"), ""),
        (("cat", "d\tog"), r"label 2 ('d\tog') contains the control character U+0009"),
        (("\x00", "cat"), r"label 1 ('\x00') contains the control character U+0000"),
        (("cat", "\x1f" + "d" * 80), rf"label 2 ('\x1f{'d' * 79}') contains the control character U+001F"),
        (("\x7f", "cat"), r"label 1 ('\x7f') contains the control character U+007F"),
        (("\x9f", "cat"), r"label 1 ('\x9f') contains the control character U+009F"),
        (("\u202a", "cat"), r"label 1 ('\u202a') contains the control character U+202A"),
        (("\u202e", "cat"), r"label 1 ('\u202e') contains the control character U+202E"),
        (("\u2066", "cat"), r"label 1 ('\u2066') contains the control character U+2066"),
        (("\u2069", "cat"), r"label 1 ('\u2069') contains the control character U+2069"),
        ((" \xa0\u2029\u202f\u2065\u206a\u200f~", "cat"), ""),
        (("قطة", "חתול", "猫"), ""),
    ],
)
def test_labels_that_can_hardly_be_labels(labels: tuple[str, ...], said: str) -> None:
    assert doubt(labels) == said
