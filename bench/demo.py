"""`make demo`: exports PyTorch networks to verified ONNX, serves them and classifies real images over gRPC.

Exports LeNet-5 (trained by the demo) and EfficientNet-Lite0 (with its ImageNet weights, from Python packages) and
serves both. Classifies 360 held-out handwritten digits and the photographs of `examples/`, and compares the results of
the photographs with PyTorch's. The model repository stays in `.demo/models`.
"""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cnnserve.images.preprocessing import Preprocessor
from cnnserve.repository import manifest
from cnnserve.repository.manifest import Preprocessing, TensorInfo
from cnnserve_client import Client
from cnnserve_export.digits import held_out_digits

ROOT = Path(__file__).resolve().parents[1]
# Relative, as the commands show them; the demo runs in the repository's folder.
FOLDER = Path(".demo")
REPOSITORY = FOLDER / "models"
PHOTOGRAPHS = Path("examples/photographs")
NETWORK = "efficientnet_lite0"
EXPORT = (
    f"examples.{NETWORK}:{NETWORK} --labels imagenet --shape 3,224,224 --resize 256 --crop 224 --interpolation bicubic "
    "--mean 0.498039,0.498039,0.498039 --std 0.501961,0.501961,0.501961"
).split()
COMMAND = [sys.executable, "-m", "cnnserve"]
TOLERANCE = 1e-4
BATCH = 24
SHOWN = 12
START_S = 60.0


def main() -> int:
    """Runs the demo and returns the exit status: 0 if all results are as expected."""
    parser = argparse.ArgumentParser(description="Export two networks, serve them and classify real images.")
    text = "number of epochs of LeNet-5's training (default: %(default)s)"
    parser.add_argument("--epochs", type=int, default=30, help=text)
    options = parser.parse_args()
    started = time.monotonic()
    os.chdir(ROOT)
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    title("1. Export: LeNet-5, trained now on 1,437 scanned handwritten digits")
    cnnserve("train-lenet", "--repository", REPOSITORY, "--epochs", str(options.epochs))
    title("2. Export: EfficientNet-Lite0 with its ImageNet weights, from Python packages")
    cnnserve("export", *EXPORT, "--repository", REPOSITORY)
    title("3. Serve both")
    with serving(REPOSITORY, FOLDER / "server.log") as address, Client(address) as client:
        for model in client.list_models():
            print(f"   {model.name}: " + ", ".join(f"version {v.version} {v.state}" for v in model.versions))
        title("4. Classify the 360 digits that were not used for training, over gRPC")
        right = digits(client)
        title("5. Classify photographs with EfficientNet-Lite0, and compare with PyTorch on the same pixels")
        equal = photographs(client)
    title(f"Done in {time.monotonic() - started:.0f} s; the server has stopped. Go on with the models of the demo:")
    print(f"   . .venv/bin/activate\n   cnnserve serve --model-repository {REPOSITORY}")
    print("   and in a second terminal, with your own images or a folder of them:")
    print(f"   . .venv/bin/activate\n   cnnserve classify {PHOTOGRAPHS} --model {NETWORK} --top-k 3")
    print("   docs/start.md explains these commands; docs/export.md exports your own network.")
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


def photographs(client: Client) -> bool:
    """Prints the most probable class of each photograph, as served and in PyTorch.

    Returns whether these classes are the same, and all 1000 probabilities differ by at most 1e-4.
    """
    version = manifest.read(REPOSITORY / NETWORK / "1")
    if version is None:
        sys.exit(f"demo: {REPOSITORY / NETWORK / '1'} has no manifest")
    labels = (REPOSITORY / NETWORK / "labels.txt").read_text().splitlines()
    sys.path.insert(0, str(ROOT))
    with contextlib.redirect_stdout(sys.stderr):  # the package prints while it loads the weights
        network = getattr(importlib.import_module(f"examples.{NETWORK}"), NETWORK)().eval()
    print(f"   {'photograph':<12}{'served':>22}{'PyTorch':>28}   largest difference over all classes")
    equal = True
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        served = client.classify(path, model=NETWORK, top_k=len(labels)).results[0]
        expected = pytorch(network, version.preprocessing, path.read_bytes())
        best = int(expected.argmax())
        difference = max(abs(expected[item.index] - item.probability) for item in served.classes)
        print(
            f"   {path.name:<12}{served.top.label:>15} {served.top.probability:>6.1%}"
            f"{labels[best]:>21} {expected[best]:>6.1%}   {difference:.1e}"
        )
        equal &= served.top.index == best and difference <= TOLERANCE
    return equal


def pytorch(network: torch.nn.Module, spec: Preprocessing, jpeg: bytes) -> np.ndarray:
    """Returns the network's probabilities from PyTorch: with the usual float pipeline and without ONNX."""
    pixels = Preprocessor(spec, TensorInfo("image", "UINT8", (224, 224, 3), "NHWC")).encoded(jpeg)
    values = torch.tensor(pixels).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(statistic).view(3, 1, 1) for statistic in (spec.mean, spec.std))
    with torch.inference_mode():
        logits = network(((values - mean) / std)[None])
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
