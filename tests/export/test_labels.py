from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.model import loader
from cnnserve_export import labels
from cnnserve_export.errors import ExportError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def read(tmp_path: Path, data: bytes, count: int, *, allow_empty: bool = False) -> tuple[str, ...]:
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    return labels.read(path, count, allow_empty=allow_empty)


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
        (b"\ncat\ndog\n", r"names\.txt line 1 is empty; give every class a label"),
        (b"a\n\xef\xbb\xbf\nb\n", r"names\.txt line 2 is empty"),
        ("a\nb\nc\n".encode("utf-16"), r"not UTF-8 at byte 0; save the file as UTF-8"),
        ("a\nb\nc\n".encode("utf-16-le"), r"line 1 holds a NUL character; save the file as UTF-8"),
        (b"", r"names\.txt is empty; write 3 labels into it, one a line$"),
        (b"cat", r"has 1 label, the network has 3 classes; correct the file$"),
        (b"cat\n\ndog\n", r"names\.txt line 2 is empty"),
        ("a\nb\u2028b\nc\n".encode(), r"line 2 holds a line break other than LF and CR: 'b\\u2028b'; remove"),
        (b"caf\xe9\nb\nc\n", r"not UTF-8 at byte 3;"),
    ],
)
def test_wrong_labels_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        read(tmp_path, data, 3)


def test_two_classes_may_share_a_name(tmp_path: Path) -> None:
    assert read(tmp_path, b"crane\nheron\ncrane\n", 3) == ("crane", "heron", "crane")


def test_files_put_together(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfcat\n\xef\xbb\xbfdog\n", 2) == ("cat", "dog")


NAME = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(
    lambda name: name.strip().strip("\ufeff").strip() == name
)


@pytest.mark.parametrize(
    ("data", "count", "said"),
    [
        (b"\n\n\n", 3, r"names\.txt is empty; write 3 labels into it|line 1 is empty"),
        (b"crane\ncrane\n", 2, r"all 2 labels are 'crane'; correct the labels, or .* --allow-empty-labels"),
        (b"cat\ndo\tg\n", 2, r"label 2 \('do\\tg'\) contains the control character U\+0009; correct"),
        (b"c\x7fat\ndog\n", 2, r"contains the control character U\+007F"),
        ("cat\ndog\u009b\n".encode(), 2, r"contains the control character U\+009B"),
        ("\u202ecat\ndog\n".encode(), 2, r"contains the control character U\+202E"),
        ("cat\nd\u2066og\n".encode(), 2, r"contains the control character U\+2066"),
    ],
)
def test_labels_that_can_hardly_be_labels_need_a_flag(data: bytes, count: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        read(tmp_path, data, count)
    names = read(tmp_path, data, count, allow_empty=True)
    assert names == tuple(data.decode().split("\n"))[:count]
    assert loader.read_labels(*write_rendered(tmp_path, names)) == names


def write_rendered(folder: Path, names: Sequence[str]) -> tuple[str, Callable[[str], bytes]]:
    (folder / "rendered.txt").write_text(labels.render(names), encoding="utf-8", newline="\n")
    return "rendered.txt", lambda name: (folder / name).read_bytes()


@pytest.mark.parametrize(
    "names", ["قطة\nكلب", "חתול\nכלב", "a\u200bb\nc"], ids=["arabic", "hebrew", "zero width space"]
)
def test_scripts_of_all_directions_are_labels(names: str, tmp_path: Path) -> None:
    assert read(tmp_path, names.encode(), 2) == tuple(names.split("\n"))


@given(
    st.lists(NAME, min_size=1),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["", "\ufeff"]),
    st.integers(0, 3),
)
def test_any_names_in_any_spelling_are_read_and_reach_the_server(
    folder: Path, names: list[str], end: str, mark: str, more: int
) -> None:
    """The exporter reads the labels as they are, and the server reads what the exporter writes."""
    data = (mark + end.join(names) + end * more).encode()
    assert read(folder, data, len(names), allow_empty=True) == tuple(names)
    assert loader.read_labels(*write_rendered(folder, names)) == tuple(names)


@given(st.lists(NAME, min_size=1), st.integers(1, 20))
def test_a_wrong_number_names_both(folder: Path, names: list[str], count: int) -> None:
    if count == len(names):
        count += 1
    with pytest.raises(ExportError, match=rf"has {len(names)} labels?, the network has {count} classes"):
        read(folder, "\n".join(names).encode(), count)


@given(st.binary(), st.integers(1, 4))
def test_any_bytes_are_labels_or_an_error(folder: Path, data: bytes, count: int) -> None:
    try:
        names = read(folder, data, count)
    except ExportError:
        return
    assert len(names) == count
    assert all(names)
    assert labels.render(names).splitlines() == list(names)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.txt cannot be read"):
        labels.read(tmp_path / "none.txt", 2)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    names = ("Kätzchen", "犬", "bird, big")
    assert read(tmp_path, labels.render(names).encode(), 3) == names


@pytest.mark.parametrize(
    "data",
    [
        b'{"0": "cat", "1": "dog"}',
        b'\xef\xbb\xbf{"1": "dog", "0": "cat"}',
        b'{"0": ["n02123045", "cat"], "1": ["n02084071", " dog "]}',
        b'{"architectures": ["ResNet"], "id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0}}',
        b'["cat", "dog"]',
    ],
)
def test_labels_of_other_servers_and_libraries(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "index_to_name.json").write_bytes(data)
    assert labels.read(tmp_path / "index_to_name.json", 2) == ("cat", "dog")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", r"names\.json is not JSON"),
        (b'{"0": "cat", "2": "dog"}', r"names\.json does not have a label for each class from 0 on; give TorchServe"),
        (b'{"id2label": {"a": "b"}}', "does not have a label for each class"),
        (b'{"0": 1, "1": "dog"}', r"names\.json holds labels that are no texts"),
        (b'{"0": "cat", "1": ""}', r"names\.json has 1 label|line 2 is empty"),
        (b'["a", "b", "c"]', "has 3 labels, the network has 2 classes"),
        (b"3", "holds labels that are no texts"),
        (b"{}", r"names\.json is empty"),
    ],
)
def test_wrong_json_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "names.json").write_bytes(data)
    with pytest.raises(ExportError, match=message):
        labels.read(tmp_path / "names.json", 2)
