"""Files that change are read again; broken ones are not taken."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from cnnserve.access.following import Followed, follow
from cnnserve.access.lists import AccessError
from support import until


class Reader:
    """Reads a file, unless it says "broken"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read_texts: list[str] = []

    def __call__(self) -> None:
        text = self.path.read_text() if self.path.exists() else "broken"
        if text == "broken":
            raise AccessError("line 1 is broken")
        self.read_texts.append(text)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    path = tmp_path / "file"
    path.write_text("one")
    return Reader(path)


def test_a_file_is_read_when_it_has_not_changed_since_the_last_look(reader: Reader) -> None:
    followed = Followed("words", [reader.path], reader)
    followed.look()
    reader.path.write_text("half")
    followed.look()
    reader.path.write_text("half of it")
    followed.look()
    assert reader.read_texts == ["one"]
    followed.look()
    followed.look()
    assert reader.read_texts == ["one", "half of it"]


def test_a_broken_file_is_told_once_and_read_when_it_is_whole(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    followed = Followed("words", [reader.path], reader)
    reader.path.write_text("broken")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            followed.look()
    assert [record.getMessage() for record in caplog.records] == [
        "words changed and cannot be used, so the old ones stay in force: line 1 is broken"
    ]
    reader.path.write_text("whole")
    followed.look()
    followed.look()
    assert reader.read_texts == ["one", "whole"]


def test_a_link_to_another_folder_is_a_change(tmp_path: Path) -> None:
    """Kubernetes replaces the files of a secret in this way."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        os.utime(tmp_path / name / "file", ns=(1, 1))
    (tmp_path / "data").symlink_to("a")
    reader = Reader(tmp_path / "data" / "file")
    followed = Followed("words", [reader.path], reader)
    (tmp_path / "new").symlink_to("b")
    (tmp_path / "new").rename(tmp_path / "data")
    followed.look()
    followed.look()
    assert reader.read_texts == ["a", "b"]


def test_a_broken_file_at_the_start_is_raised(reader: Reader) -> None:
    reader.path.unlink()
    with pytest.raises(AccessError, match="line 1 is broken"):
        Followed("words", [reader.path], reader)


async def test_follow_looks_until_it_is_cancelled(reader: Reader) -> None:
    task = asyncio.create_task(follow([Followed("words", [reader.path], reader)], interval_s=0.001))
    reader.path.write_text("two")
    await until(lambda: reader.read_texts == ["one", "two"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await follow([])


async def test_files_are_read_at_once_if_that_is_wished(reader: Reader) -> None:
    wish = asyncio.Event()
    task = asyncio.create_task(follow([Followed("words", [reader.path], reader)], wish, interval_s=1000))
    wish.set()
    await until(lambda: reader.read_texts == ["one", "one"])
    assert not wish.is_set()
    task.cancel()
