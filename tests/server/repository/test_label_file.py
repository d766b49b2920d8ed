"""Label files as people and programs write them."""

from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.label_file import read_labels


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (b"", ()),
        (b"\n", ("",)),
        (b"cat", ("cat",)),
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
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
    assert read_labels(tmp_path / "labels.txt") == labels


def test_a_file_that_is_missing_or_unreadable_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    (tmp_path / "folder.txt").mkdir()
    for name, said in (
        ("none.txt", "is missing"),
        ("latin.txt", "cannot be read: .*utf-8"),
        ("folder.txt", "cannot be"),
    ):
        with pytest.raises(ModelLoadFailed, match=rf"label file {name} {said}") as caught:
            read_labels(tmp_path / name)
        assert str(tmp_path) not in str(caught.value)
