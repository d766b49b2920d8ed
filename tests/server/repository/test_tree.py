"""Files below a folder, opened through descriptors."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.tree import Tree


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files, folders and links in and out."""
    top = tmp_path_factory.mktemp("top")
    (top / "secret").write_text("outside")
    root = top / "m"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_text("inside")
    (root / "file").write_text("inside")
    for name, target in {
        "a/up": "..",
        "a/out": "../..",
        "a/link": "b/file",
        "loop": "loop",
        "to_a": "a/",
        "absolute": root / "a",
        "a/b/root": "/",
        "gone": "nothing",
        "above": "../m",
    }.items():
        (root / name).symlink_to(target)
    return root


PARTS = st.sampled_from(
    [
        "a",
        "b",
        "file",
        "up",
        "out",
        "link",
        "loop",
        "to_a",
        "absolute",
        "root",
        "gone",
        "above",
        "..",
        ".",
        "",
        "secret",
    ]
)


@given(st.lists(PARTS, min_size=1, max_size=6).map("/".join))
def test_no_path_leads_out_and_every_path_inside_is_what_it_is_to_the_system(root: Path, path: str) -> None:
    try:
        with Tree(root) as tree:
            data = tree.read(path)
    except (FileNotFoundError, ModelLoadFailed):
        return
    assert data == b"inside"
    assert (root / path).read_bytes() == data


@pytest.mark.parametrize(
    "path", ["file", "a/b/file", "a/link", "to_a/b/file", "a/up/file", "absolute/b/file", "./a//link"]
)
def test_a_file_inside_is_read(root: Path, path: str) -> None:
    with Tree(root) as tree:
        assert tree.read(path) == b"inside"
        assert tree.stat(path).st_size == 6
        assert tree.has(path)
        assert tree.opened.keys() == {path}


@pytest.mark.parametrize(
    "path", ["..", "../secret", "a/out/secret", "above/file", "a/b/root/etc/passwd", "/etc/passwd"]
)
def test_what_is_outside_is_refused(root: Path, path: str) -> None:
    with Tree(root) as tree, pytest.raises(ModelLoadFailed, match=f"^{path} leads out of the model's folder"):
        tree.open(path)


@pytest.mark.parametrize("path", ["none", "none/file", "file/none", "gone", "a/link/none"])
def test_what_is_not_there_is_not_found(root: Path, path: str) -> None:
    with Tree(root) as tree, pytest.raises(FileNotFoundError):
        tree.open(path)


def test_a_link_to_nothing_is_something(root: Path) -> None:
    with Tree(root) as tree:
        assert tree.has("gone")
        assert not tree.has("none")
        assert not tree.has("none/file")
        assert tree.names("a/b") == ["file", "root"]


@pytest.mark.parametrize("path", ["fi\0le", "a" * 300, "loop"])
def test_no_path_is_an_error_of_another_kind(root: Path, path: str) -> None:
    with Tree(root) as tree, pytest.raises(ModelLoadFailed):
        tree.open(path)


def test_a_link_that_was_followed_once_stays_what_it_was(tmp_path: Path) -> None:
    for state in ("one", "two"):
        (tmp_path / state).mkdir()
        for name in ("first", "second"):
            (tmp_path / state / name).write_text(state)
    (tmp_path / "now").symlink_to("one")
    with Tree(tmp_path) as tree:
        assert tree.read("now/first") == b"one"
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(tmp_path / "now")
        assert tree.read("now/second") == b"one"
    with Tree(tmp_path) as tree:
        assert tree.read("now/second") == b"two"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate((1 << 20) + 1)
    with Tree(tmp_path) as tree, pytest.raises(ModelLoadFailed, match="large has more than 1 MiB, the limit"):
        tree.read("large", 1 << 20)
