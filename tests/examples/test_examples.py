"""Every example does what its docstring says: its commands are run as they stand, only on free ports."""

import asyncio
import contextlib
import csv
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from cnnserve_client import Client
from cnnserve_export.architectures.resnet import resnet18
from example_commands import EXAMPLES, commands
from support import HANG_S, RunningServer, serving

FLOWERS = {"daisy": (240, 230, 60), "rose": (200, 20, 40), "violet": (90, 40, 200)}


def test_every_example_is_tested_and_listed() -> None:
    # make interop and the tests of the documentation export efficientnet_lite0.
    tested = {"fine_tune_resnet18", "import_onnx", "folder_to_csv", "web_backend", "reflection"}
    examples = {path.stem for path in EXAMPLES.glob("*.py")}
    assert examples == tested | {"efficientnet_lite0"}
    assert set(re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())) == examples


def reader_folder(folder: Path) -> Path:
    """Returns `folder`, with what the commands expect of a checkout."""
    for path in (EXAMPLES, EXAMPLES.parent / "model_repo"):
        (folder / path.name).symlink_to(path, target_is_directory=True)
    return folder


def environment(**variables: str | Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CNNSERVE_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | {"PATH": path} | {name: str(value) for name, value in variables.items()}


def run(command: str, folder: Path, *, code: int = 0, **variables: str | Path) -> str:
    """Runs a shell command in `folder`, checks its exit code and returns its standard output."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def served(command: str, folder: Path) -> Iterator[RunningServer]:
    """Yields the server of a `cnnserve serve --repository DIR` that was given in `folder`."""
    *serve, repository = shlex.split(command)
    assert serve == ["cnnserve", "serve", "--repository"]
    with serving(folder / "server.log", folder / repository) as server:
        yield server


def labels(table: str) -> list[str]:
    """Returns the labels in a table of `cnnserve classify --top-k 1`."""
    return [line.split()[-1] for line in table.splitlines()[1:]]


def test_fine_tune_resnet18(tmp_path: Path) -> None:
    folder = reader_folder(tmp_path)
    train, serve, classify = commands("fine_tune_resnet18")
    draw_flowers(folder / "flowers")
    # The cache of torch as after a download. ImageNet weights cannot be downloaded here, so these are random.
    weights = folder / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(resnet18(1000).state_dict(), weights)
    printed = run(f"{train} --size 32 --epochs 8", folder, TORCH_HOME=folder / "torch")
    assert "accuracy on 4 held-out images: 100.0%" in printed
    with served(serve, folder) as server, Client(server.address) as client:
        assert labels(run(f"{classify} --address {server.address}", folder)) == ["daisy"] * 6
        paths = sorted((folder / "flowers").glob("*/*"))
        answer = client.classify(paths, model="flowers")
    # Training and server have to see the same pixels.
    example = module("fine_tune_resnet18")
    network = resnet18(len(FLOWERS)).eval()
    network.load_state_dict(torch.load(folder / "flowers.pth"))
    with torch.inference_mode():
        expected = network(example.read([(path, 0) for path in paths], 32)[0]).softmax(1).numpy()
    for path, row, result in zip(paths, expected, answer.results, strict=True):
        assert result.top.label == path.parent.name
        assert {one.index: one.probability for one in result.classes} == pytest.approx(dict(enumerate(row)), abs=1e-4)


def draw_flowers(folder: Path) -> None:
    """Draws six noisy images of each flower's colour."""
    random = np.random.default_rng(0)
    for label, colour in FLOWERS.items():
        (folder / label).mkdir(parents=True)
        for number in range(6):
            pixels = np.clip(random.normal(colour, 40, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def module(name: str) -> ModuleType:
    """Imports an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Digits(NamedTuple):
    """What `import_onnx` made in its folder, and the server of its model."""

    folder: Path
    server: RunningServer
    accuracy: float


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Digits]:
    folder = reader_folder(tmp_path_factory.mktemp("digits"))
    make, publish, serve, _ = commands("import_onnx")
    accuracy = re.fullmatch(r"accuracy on 360 held-out digits: ([\d.]+)%\n", run(make, folder))
    assert accuracy
    assert run(publish, folder) == "models/digits/1\n"
    with served(serve, folder) as server:
        yield Digits(folder, server, float(accuracy[1]) / 100)


def test_import_onnx(digits: Digits) -> None:
    assert digits.accuracy > 0.95
    classify = commands("import_onnx")[-1]
    found = labels(run(f"{classify} --address {digits.server.address}", digits.folder))
    assert found.count("7") > 0.9 * len(found) > 20


def test_folder_to_csv(digits: Digits) -> None:
    serve, classify = commands("folder_to_csv")
    assert serve in commands("import_onnx")
    broken = digits.folder / "digits" / "3" / "broken.png"
    broken.write_bytes(b"no image")
    try:
        printed = run(f"{classify} --address {digits.server.address}", digits.folder, code=1)
    finally:
        broken.unlink()
    with (digits.folder / "digits.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    failed = rows.pop("digits/3/broken.png")
    assert (failed["folder"], failed["label"], failed["probability"]) == ("3", "", "")
    assert "no image" in failed["error"]
    assert {row["error"] for row in rows.values()} == {""}
    assert all(0.1 < float(row["probability"]) <= 1 for row in rows.values())
    right = sum(row["label"] == row["folder"] for row in rows.values())
    assert printed == f"361 images: {right} have the label of their folder, 1 failed\n"
    # In files, ink is rounded to 255 steps, which may change the class of an image in between.
    assert right == pytest.approx(digits.accuracy * 360, abs=2)


def test_web_backend(tmp_path: Path) -> None:
    folder = reader_folder(tmp_path)
    serve, start, ask = commands("web_backend")
    golden = folder / "model_repo" / "lenet5" / "1" / "golden.png"
    with served(serve, folder) as server, application(start, folder, server.address) as url:
        answer = json.loads(run(ask.replace("http://127.0.0.1:8080", url), folder))
        assert [one["label"] for one in answer["classes"]] == ["3", "4", "7"]
        assert asyncio.run(send_many(f"{url}/classify", golden.read_bytes(), 30)) == [answer] * 30
        for files, said in (({"photograph": b"no image"}, "no image"), ({"other": b""}, "no file 'photograph'")):
            response = httpx.post(f"{url}/classify", files=files)
            assert response.status_code == 400
            assert said in response.text
        too_large = httpx.post(f"{url}/classify", files={"photograph": bytes(10 * 2**20 + 1)})
        assert too_large.status_code == 413
        assert server.terminate() == 0
        response = httpx.post(f"{url}/classify", files={"photograph": golden.read_bytes()}, timeout=HANG_S)
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"


@contextlib.contextmanager
def application(start: str, folder: Path, address: str) -> Iterator[str]:
    """Yields the URL of the web application, on a free port."""
    command = ["bash", "-c", f"exec env {start.replace('--port 8080', '--port 0')}"]
    log = folder / "application.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment(SERVERS=address), stdout=output, stderr=output)
    try:
        while not (running := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        yield running[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(HANG_S)


async def send_many(url: str, image: bytes, count: int) -> list[object]:
    """Sends requests at the same time and returns the JSON of their responses."""
    async with httpx.AsyncClient(timeout=HANG_S) as client:
        responses = await asyncio.gather(*(client.post(url, files={"photograph": image}) for _ in range(count)))
    return [response.json() for response in responses]


def test_reflection(tmp_path: Path) -> None:
    folder = reader_folder(tmp_path)
    serve, call, *_ = commands("reflection")
    with served(serve, folder) as server:
        services, _, response = run(f"{call} --address {server.address}", folder).partition("\n")
    assert {"cnnserve.v1.Classifier", "inference.GRPCInferenceService"} <= set(services.split())
    assert [one["label"] for one in json.loads(response)["results"][0]["classes"]] == ["3", "4", "7"]
    assert not re.search(r"^(import|from) cnnserve", (EXAMPLES / "reflection.py").read_text(), re.MULTILINE)
