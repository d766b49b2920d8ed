"""The LeNet-5 of `model_repo`, served by a real server, called with the real clients."""

import asyncio
import io
import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnserve_client import AsyncClient, Client, InvalidInputError, NotFoundError
from cnnserve_export.digits import held_out_digits
from support import HANG_S, REPOSITORY, RunningServer, serving

Digits = list[tuple[bytes, int]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serving(tmp_path_factory.mktemp("log") / "server.log", REPOSITORY) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def digits() -> Digits:
    return held_out_digits()


def cnnserve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cnnserve", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG_S)


def test_at_least_98_percent_of_the_held_out_digits(client: Client, digits: Digits) -> None:
    images = [image for image, _ in digits]
    answers = [client.classify(images[i : i + 32], model="lenet5").results for i in range(0, len(images), 32)]
    results = [result for answer in answers for result in answer]
    assert len(results) == 360
    right = sum(result.top.label == str(value) for result, (_, value) in zip(results, digits, strict=True))
    assert right >= 0.98 * 360


def test_a_batch_equals_its_images_alone(client: Client, digits: Digits) -> None:
    images = [image for image, _ in digits[:32]]
    together = client.classify(images, model="lenet5", top_k=10).results
    for image, result in zip(images, together, strict=True):
        [alone] = client.classify(image, model="lenet5", top_k=10).results
        assert [item.index for item in alone.classes] == [item.index for item in result.classes]
        for one, other in zip(alone.classes, result.classes, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_every_form_of_an_image_gives_the_same_answer(client: Client, digits: Digits, tmp_path: Path) -> None:
    data, value = digits[0]
    path = tmp_path / "digit.png"
    path.write_bytes(data)
    picture = Image.open(io.BytesIO(data))
    forms = [data, path, str(path), picture, np.asarray(picture), np.asarray(picture)[:, :, np.newaxis]]
    results = client.classify(forms, model="lenet5", top_k=10).results
    assert {result.top.label for result in results} == {str(value)}
    assert len({result.classes for result in results}) == 1


def test_many_at_once_equal_the_same_in_requests(client: Client, digits: Digits) -> None:
    images = [image for image, _ in digits]
    answers = [client.classify(images[i : i + 32], model="lenet5").results for i in range(0, len(images), 32)]
    streamed = list(client.classify_many(iter(images), model="lenet5"))
    assert [result.top.label for result in streamed] == [result.top.label for answer in answers for result in answer]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_restarts_in_mid_stream_costs_no_image(digits: Digits, tmp_path: Path, number: int) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(serving(tmp_path / "first.log", REPOSITORY))
        read = 0

        def images() -> Iterator[bytes]:
            nonlocal read
            for image, _ in itertools.islice(itertools.cycle(digits), 2000):
                if read == 1000:
                    first.process.send_signal(number)
                    first.process.wait(HANG_S)
                    # The last flag counts: the server takes the same port again.
                    port = ("--grpc-port", str(first.grpc_port))
                    stack.enter_context(serving(tmp_path / "second.log", REPOSITORY, *port))
                read += 1
                yield image

        with Client(first.address) as client:
            results = list(client.classify_many(images(), model="lenet5", top_k=1))
    expected = [str(value) for _, value in itertools.islice(itertools.cycle(digits), 2000)]
    assert len(results) == 2000
    assert sum(result.top.label == value for result, value in zip(results, expected, strict=True)) >= 0.98 * 2000


async def test_the_async_client_in_parallel(server: RunningServer, digits: Digits) -> None:
    async with AsyncClient(server.address) as client:
        answers = await asyncio.gather(*(client.classify(image, model="lenet5") for image, _ in digits[:64]))
    right = sum(a.results[0].top.label == str(value) for a, (_, value) in zip(answers, digits[:64], strict=True))
    assert right >= 62


def test_clear_errors(client: Client) -> None:
    with pytest.raises(NotFoundError, match="'lenet6' is not in the model repository; it has lenet5"):
        client.classify(b"x", model="lenet6")
    with pytest.raises(InvalidInputError, match="33 images, model 'lenet5' takes at most 32"):
        client.classify([b"x"] * 33, model="lenet5")
    [result] = client.classify(b"hello", model="lenet5").results
    assert not result.ok
    assert result.error is not None


def test_the_command_line(server: RunningServer, digits: Digits, tmp_path: Path) -> None:
    paths = []
    for index, (data, _) in enumerate(digits[:40]):
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(data)
    done = cnnserve("classify", *map(str, paths), "--address", server.address, "--top-k", "1", "--json")
    assert done.returncode == 0, done.stderr
    labels = [json.loads(line)["classes"][0]["label"] for line in done.stdout.splitlines()]
    assert sum(label == str(value) for label, (_, value) in zip(labels, digits, strict=False)) >= 39
    table = cnnserve("classify", str(paths[0]), str(tmp_path / "none.png"), "--address", server.address)
    assert table.returncode == 1
    assert "none.png" in table.stderr
    assert f"{digits[0][1]}" in table.stdout
    assert cnnserve("health", "--address", server.address).returncode == 0
    assert cnnserve("health", "--address", server.address, "--model", "lenet5").returncode == 0
    assert cnnserve("health", "--address", server.address, "--model", "other").returncode == 1
    assert "lenet5" in cnnserve("models", "--address", server.address).stdout
    assert json.loads(cnnserve("labels", "lenet5", "--json", "--address", server.address).stdout)[7]["label"] == "7"
    assert cnnserve("health", "--address", "127.0.0.1:1").returncode == 1
