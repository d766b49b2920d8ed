"""Labelled images in folders and CSV files."""

import os
from pathlib import Path

import pytest

from cnnserve.tools.evaluation import dataset
from cnnserve_client.errors import InvalidInputError
from support import as_other_user


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def pairs(found: dataset.Dataset, root: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(sample.entry.name, root), sample.class_name) for sample in found.samples]


def test_each_folder_is_a_class_with_all_images_below_it(tmp_path: Path) -> None:
    root = touch(tmp_path, "b/2.png", "b/1.jpg", "a/deep/3.webp", "a/notes.txt", ".hidden/4.png")
    found = dataset.from_folder(root)
    assert pairs(found, root) == [("a/deep/3.webp", "a"), ("b/1.jpg", "b"), ("b/2.png", "b")]
    assert not found.remarks


def test_empty_class_folders_and_loose_images_are_told(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.png", "b/notes.txt", "loose.png")
    found = dataset.from_folder(root)
    assert pairs(found, root) == [("a/1.png", "a")]
    assert found.remarks[0].startswith("class folder b: the folder has no images")
    assert found.remarks[1] == "1 image beside the class folders: not used, because no folder names the class"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which other users reach without a right to the folders above it."""
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    return Path()


def test_a_class_folder_that_cannot_be_read_is_a_failure_and_no_empty_one(here: Path) -> None:
    touch(here, "a/1.png", "b/2.png")
    (here / "b").chmod(0)
    with as_other_user():
        found = dataset.from_folder(here)
    (here / "b").chmod(0o755)
    assert pairs(found, here) == [("a/1.png", "a"), ("b", "b")]
    assert str(found.samples[1].entry.error) == "Permission denied"
    assert not found.remarks


def test_a_folder_in_which_nothing_can_be_looked_up_is_named(here: Path) -> None:
    touch(here, "root/a/1.png")
    (here / "root").chmod(0o644)
    with as_other_user(), pytest.raises(InvalidInputError, match="root: cannot read the folder: Permission denied"):
        dataset.from_folder(here / "root")
    (here / "root").chmod(0o755)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], "neither class folders nor images"),
        (["1.png", "2.png"], "2 images, but no class folders"),
        (["a/notes.txt"], "1 class folder, but no images"),
    ],
)
def test_folders_without_labelled_images_are_refused(tmp_path: Path, names: list[str], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        dataset.from_folder(touch(tmp_path, *names))


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot read the folder: No such file or directory"):
        dataset.from_folder(tmp_path / "absent")


def test_a_csv_names_paths_relative_to_itself_or_to_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "lists" / "test.csv"
    file.parent.mkdir()
    file.write_text('\ufefflabel,score,path\n"cat, tabby",1,a.png\ndog,2,/absolute/b.png\n', encoding="utf-8")
    found = dataset.from_csv(file, None)
    assert [(one.entry.name, one.class_name) for one in found.samples] == [
        (f"{file.parent}/a.png", "cat, tabby"),
        ("/absolute/b.png", "dog"),
    ]
    assert dataset.from_csv(file, tmp_path).samples[0].entry.name == f"{tmp_path}/a.png"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "no column path and no column label"),
        (b"path,class\na,b\n", "no column label"),
        (b"path,label\n", "lists no images"),
        (b"path,label\na.png,\n", "line 2: path or label is missing"),
        (b"path,label\na.png\n", "line 2: path or label is missing"),
        (b"path,label\n\xff,x\n", "cannot read the CSV file"),
        (b"path,label\n" + b"x" * 200_000 + b",y\n", "field larger than field limit"),
    ],
)
def test_wrong_csv_files_are_refused(tmp_path: Path, data: bytes, text: str) -> None:
    file = tmp_path / "test.csv"
    file.write_bytes(data)
    with pytest.raises(InvalidInputError, match=text) as caught:
        dataset.from_csv(file, None)
    assert str(caught.value).count("test.csv") == 1


def test_a_pipe_in_a_csv_is_an_error_of_this_image_and_not_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "test.csv").write_text("path,label\npipe.png,a\n")
    (sample,) = dataset.from_csv(tmp_path / "test.csv", None).samples
    assert str(sample.entry.error) == "not a regular file"
