from pathlib import Path

import pytest

from cnnserve_export import labels
from cnnserve_export.errors import ExportError


def read(tmp_path: Path, data: bytes, count: int) -> tuple[str, ...]:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    return labels.read(path, count)


@pytest.mark.parametrize(
    "data",
    [b"cat\ndog\n", b"cat\ndog", b"cat\r\ndog\r\n", b"\xef\xbb\xbfcat\ndog\n", b"cat\ndog\n\n \n", b" cat \n\tdog\n"],
)
def test_ways_to_write_the_same_labels(data: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, data, 2) == ("cat", "dog")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat\ndog\n", r"names\.txt has 2 labels, the network has 3 classes; .*--num-classes 2"),
        (b"", r"has 0 labels, the network has 3 classes"),
        (b"cat\n\ndog\n", r"names\.txt line 2 is empty"),
        ("a\nb\u2028b\nc\n".encode(), r"line 2 holds a line break"),
        (b"caf\xe9\nb\nc\n", r"not UTF-8 \(byte 3\)"),
    ],
)
def test_wrong_labels_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read(tmp_path, data, 3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.txt cannot be read"):
        labels.read(tmp_path / "none.txt", 2)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    names = ("Kätzchen", "犬", "bird, big")
    assert read(tmp_path, labels.render(names).encode(), 3) == names
