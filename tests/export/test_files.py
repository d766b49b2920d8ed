"""Special files in place of regular files. If the exporter read one, the test would not end."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cnnserve_export import checkpoints, files, foreign, golden, images, labels
from cnnserve_export.errors import ExportError

READERS = {
    "weights": lambda path: checkpoints.load(torch.nn.Linear(1, 1), path),
    "import": foreign.read,
    "labels": lambda path: labels.read(path, 2),
    "golden": golden.from_file,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device"])
def test_what_is_no_plain_file_is_not_read(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "special"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    with pytest.raises(ExportError, match=f"{path} cannot be read: it is not a regular file"):
        read(path)


def test_a_plain_file_is_read_whole_also_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"all of it")
    (tmp_path / "link").symlink_to("file")
    assert files.read(tmp_path / "link", "the link") == b"all of it"


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_folder_is_none(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be read: .*Is a directory"):
        read(tmp_path)


def test_a_pipe_among_images_is_named_and_a_folder_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "0.png").write_bytes(golden.digit())
    assert [item.name for item in images.folder(tmp_path).items] == ["folder.jpg/0.png"]
    os.mkfifo(tmp_path / "1.png")
    with pytest.raises(ExportError, match=r"1\.png cannot be read: it is not a regular file"):
        images.folder(tmp_path)
