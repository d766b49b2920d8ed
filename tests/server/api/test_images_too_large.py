"""Images that need more memory than there is for all of them: they are refused by themselves, and shut nobody out."""

import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from cnnserve_client import Client
from support import HANG_S, RunningServer, picture, png, serving, write_version

FLAGS = ("--max-pending-mib", "64", "--decode-threads", "2")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("too-large")
    write_version(folder / "models" / "tiny" / "1")
    with serving(folder / "log", folder / "models", *FLAGS) as server:
        yield server


def webp(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height), (1, 2, 3, 4)).save(buffer, "WEBP", lossless=True, method=0)
    return buffer.getvalue()


def row(width: int) -> bytes:
    """Returns the beginning of a PNG, whose size is refused before anything behind it is read."""
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", width, 1, 8, 0, 0, 0, 0)


def test_a_tiny_file_of_a_large_image_shuts_nobody_out(server: RunningServer) -> None:
    large = webp(2000, 2000)
    assert len(large) < 5000

    def attack() -> list[str]:
        with Client(server.address, timeout_s=HANG_S) as client:
            answers = [client.classify([large, picture("left")], model="tiny") for _ in range(40)]
        assert all(answer.results[1].top.label == "left" for answer in answers)
        return [str(answer.results[0].error) for answer in answers]

    with ThreadPoolExecutor(1) as pool, Client(server.address, timeout_s=HANG_S, retries=0) as other:
        attacking = pool.submit(attack)
        while not attacking.done():
            assert other.classify([picture("left")], model="tiny").results[0].top.label == "left"
    assert all("decoding the image needs" in error for error in attacking.result())


@pytest.mark.parametrize("width", [65_536, 50_000_000])
def test_a_side_that_is_too_long(server: RunningServer, width: int) -> None:
    with Client(server.address, timeout_s=HANG_S) as client:
        (result,) = client.classify([row(width)], model="tiny").results
        assert "a side may have 65,535" in str(result.error)


def test_images_that_fit_one_after_the_other_are_all_read(server: RunningServer) -> None:
    """Three of them are more than there is for images."""
    large = png(np.zeros((1500, 1500, 3), np.uint8))
    with Client(server.address, timeout_s=HANG_S) as client:
        answer = client.classify([large] * 8, model="tiny")
    assert all(result.ok for result in answer.results)
