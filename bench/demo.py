"""`make demo`: exports PyTorch networks to verified ONNX, serves them and classifies real images over gRPC.

Exports LeNet-5 (trained by the demo) and ResNet-50 (with seeded random weights, so that nothing is downloaded) and
serves both. Classifies 360 held-out handwritten digits and two photographs, and compares the results of the photographs
with PyTorch's.
"""

import argparse
import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository.manifest import TensorInfo
from cnnserve_client import Client
from cnnserve_export import checkpoints
from cnnserve_export.architectures import ARCHITECTURES
from cnnserve_export.digits import held_out_digits

COMMAND = [sys.executable, "-m", "cnnserve"]
TOLERANCE = 1e-4
BATCH = 24
SHOWN = 12
START_S = 60.0


def main() -> int:
    """Runs the demo and returns the exit status: 0 if all results are as expected."""
    parser = argparse.ArgumentParser(description="Export two networks, serve them and classify real images.")
    text = "network that classifies the photographs (default: %(default)s)"
    parser.add_argument("--network", default="resnet50", help=text)
    text = "number of epochs of LeNet-5's training (default: %(default)s)"
    parser.add_argument("--epochs", type=int, default=30, help=text)
    options = parser.parse_args()
    network = options.network
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cnnserve-demo-") as folder:
        repository = Path(folder) / "models"
        title("1. Export: LeNet-5, trained now on 1,437 scanned handwritten digits")
        cnnserve("train-lenet", "--repository", repository, "--name", "lenet5", "--epochs", str(options.epochs))
        title(
            f"2. Export: {network} with seeded random weights (untrained: labels mean nothing, probabilities compare)"
        )
        cnnserve("export", network, "--repository", repository)
        title("3. Serve both")
        with serving(repository, Path(folder) / "server.log") as address, Client(address) as client:
            for model in client.list_models():
                print(f"   {model.name}: " + ", ".join(f"version {v.version} {v.state}" for v in model.versions))
            title("4. Classify the 360 digits that were not used for training, over gRPC")
            right = digits(client)
            title(f"5. Classify two photographs with {network}, and compare with PyTorch on the same pixels")
            equal = photographs(client, network)
        title(f"Done in {time.monotonic() - started:.0f} s; the server has stopped.")
    return 0 if right and equal else 1


def digits(client: Client) -> bool:
    """Prints 12 digits, the accuracy and the rate. Returns whether the accuracy is at least 98 %."""
    images, values = zip(*held_out_digits(), strict=True)
    client.classify(images[:BATCH], model="lenet5")
    started = time.monotonic()
    results = [
        result
        for start in range(0, len(images), BATCH)
        for result in client.classify(images[start : start + BATCH], model="lenet5", top_k=1).results
    ]
    seconds = time.monotonic() - started
    print(f"   {'digit':>5}  {'label':>5}  {'probability':>11}")
    for value, result in list(zip(values, results, strict=True))[:SHOWN]:
        print(f"   {value:>5}  {result.top.label:>5}  {result.top.probability:>11.4f}")
    correct = sum(result.top.label == str(value) for value, result in zip(values, results, strict=True))
    print(f"   ... {len(images)} digits in total: {correct} right ({correct / len(images):.1%}),", end=" ")
    print(f"{len(images) / seconds:,.0f} images/s from one client with {BATCH} images per request")
    return correct >= 0.98 * len(images)


def photographs(client: Client, network: str) -> bool:
    """Prints the five most probable classes of server and PyTorch side by side.

    Returns whether these classes are the same, and all 1000 probabilities differ by at most 1e-4.
    """
    equal = True
    for name in ("china.jpg", "flower.jpg"):
        jpeg = io.BytesIO()
        Image.fromarray(load_sample_image(name)).save(jpeg, "JPEG", quality=95)
        served = client.classify(jpeg.getvalue(), model=network, top_k=1000).results[0]
        expected = pytorch(network, jpeg.getvalue())
        best = np.argsort(-expected, kind="stable")[:5]
        difference = max(abs(expected[item.index] - item.probability) for item in served.classes)
        print(f"   {name}: {'class':>5} {'served':>9}   {'class':>5} {'PyTorch':>9}")
        for item, index in zip(served.classes, best, strict=False):
            print(f"   {'':{len(name)}}  {item.index:>5} {item.probability:>9.6f}   {index:>5} {expected[index]:>9.6f}")
        same = [item.index for item in served.classes[:5]] == best.tolist() and difference <= TOLERANCE
        verdict = "equal" if same else "NOT EQUAL"
        print(f"   {'':{len(name)}}  {verdict}: largest difference over all 1000 classes {difference:.1e}")
        equal &= same
    return equal


def pytorch(network: str, jpeg: bytes) -> np.ndarray:
    """Returns the network's probabilities from PyTorch: with the usual float pipeline and without ONNX."""
    architecture = ARCHITECTURES[network]
    spec = architecture.preprocessing
    pixels = Preprocessor(spec, TensorInfo("image", "UINT8", (224, 224, 3), "NHWC")).encoded(jpeg)
    values = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(statistic).view(3, 1, 1) for statistic in (spec.mean, spec.std))
    with torch.inference_mode():
        logits = checkpoints.build(architecture, 1000).eval()(((values - mean) / std)[None])
    result: np.ndarray = torch.softmax(logits, 1)[0].numpy()
    return result


def cnnserve(*arguments: str | Path) -> None:
    """Runs a cnnserve command and prints its output."""
    print("   $ cnnserve", *arguments, flush=True)
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with process:
        for line in process.stdout or ():
            print("  ", line.decode().rstrip(), flush=True)
    if process.returncode:
        sys.exit(f"demo: cnnserve {arguments[0]} failed with exit code {process.returncode}")


@contextlib.contextmanager
def serving(repository: Path, log_file: Path) -> Iterator[str]:
    """Starts a server on free ports of this machine and yields its gRPC address. Stops it with SIGTERM in any case."""
    words = ["serve", "--model-repository", str(repository), "--grpc-port", "0", "--http-port", "0"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    started = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=log, env=environment)
    try:
        port = wait_for(process, log_file, r"gRPC port (\d+)")
        wait_for(process, log_file, r"cnnserve.app: ready()")
        print(f"   ready in {time.monotonic() - started:.1f} s on 127.0.0.1:{port}")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        if process.wait(60) != 0:
            print(log_file.read_text())
            raise SystemExit(f"demo: the server exited with status {process.returncode}")


def wait_for(process: subprocess.Popen[bytes], log_file: Path, pattern: str) -> str:
    """Waits until the server's log contains `pattern` and returns the first group of the match."""
    end = time.monotonic() + START_S
    while time.monotonic() < end and process.poll() is None:
        if match := re.search(pattern, log_file.read_text()):
            return match[1]
        time.sleep(0.02)
    print(log_file.read_text())
    raise SystemExit(f"demo: the server did not log {pattern!r} within {START_S:g} s")


def title(text: str) -> None:
    """Prints a heading."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
