"""The images that a command line names."""

import os
import subprocess
import sys

import pytest

from cnnserve_client.commands.sources import SUFFIXES, Entry, find, listed, read
from cnnserve_client.errors import InvalidInputError
from cnnserve_client.images import read_file


@pytest.fixture(autouse=True)
def tree(tmp_path, monkeypatch):
    """photos/{a.jpg, b.PNG, notes.txt, .hidden.png, deep/{c.webp, .git/d.png}}, empty/, digit[1].png."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/a.jpg", "photos/b.PNG", "photos/notes.txt", "photos/.hidden.png", "photos/deep/c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "photos/deep/.git").mkdir()
    (tmp_path / "photos/deep/.git/d.png").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "digit[1].png").write_bytes(b"x")
    return tmp_path


def found(*arguments: str) -> list[str]:
    return [f"{entry.name}: {entry.error}" if entry.error else entry.name for entry in find(arguments)]


ALL = ["photos/a.jpg", "photos/b.PNG", "photos/deep/c.webp"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("photos", ALL),
        ("photos/", ALL),
        ("./photos", [f"./{name}" for name in ALL]),
        ("photos/notes.txt", ["photos/notes.txt"]),  # A file that is named is taken, whatever its suffix.
        ("photos/.hidden.png", ["photos/.hidden.png"]),
        ("digit[1].png", ["digit[1].png"]),  # The file exists, so the name is no pattern.
        ("photos/*.jpg", ["photos/a.jpg"]),
        ("photos/[ab].*", ["photos/a.jpg", "photos/b.PNG"]),
        ("photos/*", ["photos/a.jpg", "photos/b.PNG", "photos/deep/c.webp", "photos/notes.txt"]),
        ("photos/**/*.webp", ["photos/deep/c.webp"]),
        ("photos/**", ["photos/a.jpg", "photos/b.PNG", "photos/deep/c.webp", "photos/notes.txt"]),
        ("-", ["-"]),
        ("gone.png", ["gone.png: No such file or directory"]),
        ("*.tiff", ["*.tiff: no file matches this pattern"]),
        (
            "empty",
            ["empty: the folder has no images (jpg, jpeg, jfif, jpe, pjpeg, pjp, png, apng, webp, bmp, dib, gif)"],
        ),
        ("", [": No such file or directory"]),
    ],
)
def test_files_folders_and_patterns(argument, expected):
    assert found(argument) == expected


def test_a_name_that_no_file_can_have():
    [entry] = find(["a\0b"])
    assert "embedded null" in str(entry.error)


def test_an_absolute_pattern(tree):
    assert found(f"{tree}/photos/*.jpg") == [f"{tree}/photos/a.jpg"]


def test_arguments_keep_their_order():
    assert found("photos/b.PNG", "photos/a.jpg", "photos/deep") == [
        "photos/b.PNG",
        "photos/a.jpg",
        "photos/deep/c.webp",
    ]


def test_links_go_in_no_circles(tree):
    (tree / "photos/loop").symlink_to(tree / "photos", target_is_directory=True)
    (tree / "photos/self.png").symlink_to("self.png")
    (tree / "photos/linked.png").symlink_to("a.jpg")
    assert found("photos") == [*ALL[:2], "photos/deep/c.webp", "photos/linked.png", "photos/self.png"]
    assert found("photos/**/*.jpg") == ["photos/a.jpg"]
    assert found("photos/loop")[:1] == ["photos/loop/a.jpg"]  # A link that is named is followed.
    with pytest.raises(InvalidInputError, match="Too many levels of symbolic links"):
        read(Entry("photos/self.png"), 10, read_file)


def test_a_pipe_in_a_folder_holds_nothing_up(tree):
    os.mkfifo(tree / "photos/pipe.png")
    (tree / "photos/link.png").symlink_to("pipe.png")
    assert found("photos") == ALL


def test_a_pipe_that_is_named_is_refused(tree):
    os.mkfifo(tree / "pipe.png")
    (tree / "list.txt").write_text("pipe.png\n/dev/zero")
    for entry in (*find(["pipe.png", "pipe.*"]), *listed("list.txt")):
        with pytest.raises(InvalidInputError, match="not a regular file; to read an image from a pipe, use -"):
            read(entry, 10, read_file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_told(tree):
    (tree / "photos/deep").chmod(0)
    try:
        assert found("photos") == ["photos/a.jpg", "photos/b.PNG", "photos/deep: Permission denied"]
    finally:
        (tree / "photos/deep").chmod(0o700)


def test_odd_names_are_kept(tree):
    names = ["Größe.png", "new\nline.png", "数字.png", "-dash.png", os.fsdecode(b"\xff.png")]
    (tree / "odd").mkdir()
    for name in names:
        (tree / "odd" / name).write_bytes(b"x")
    assert sorted(found("odd")) == sorted(f"odd/{name}" for name in names)
    assert all(read(entry, 10, read_file) == b"x" for entry in find(["odd"]))


def test_a_list_of_paths(tree):
    (tree / "list.txt").write_bytes("photos/b.PNG\r\n\nphotos/deep\n*.png\nGröße.png".encode())
    entries = list(listed("list.txt"))
    assert [entry.name for entry in entries] == ["photos/b.PNG", "photos/deep/c.webp", "*.png", "Größe.png"]
    assert [entry.error is None for entry in entries] == [True, True, False, False]


def test_a_list_that_is_not_there_is_told():
    with pytest.raises(InvalidInputError, match=r"list.txt: cannot read the list of images: No such file"):
        list(listed("list.txt"))


def test_reading_stops_at_the_limit():
    assert read(Entry("photos/a.jpg"), 1, read_file) == b"x"
    with pytest.raises(InvalidInputError, match="larger than the 1000 bytes"):
        read(Entry("/dev/zero"), 1000, read_file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_ending_of_an_image_is_one(tmp_path, suffix):
    image = tmp_path / "alone" / f"A{suffix.upper()}"
    image.parent.mkdir()
    image.write_bytes(b"x")
    assert found(str(image.parent)) == [str(image)]


def test_a_list_on_standard_input_may_begin_with_a_byte_order_mark(tmp_path):
    program = "from cnnserve_client.commands.sources import listed; print([entry.name for entry in listed('-')])"
    data = b"\xef\xbb\xbf/no/such.png\r\n/nor/this.png"
    ended = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, check=True)
    assert ended.stdout.decode() == "['/no/such.png', '/nor/this.png']\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16_is_refused(tmp_path, encoding):
    (tmp_path / "list").write_bytes("\ufeffa.png\r\n".encode(encoding))
    with pytest.raises(InvalidInputError, match=r"it is UTF-16, .* save it as UTF-8"):
        list(listed(str(tmp_path / "list")))


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + f"{tmp_path}/a.png\n".encode())
    assert [entry.name for entry in listed(str(tmp_path / "list"))] == [f"{tmp_path}/a.png"]
