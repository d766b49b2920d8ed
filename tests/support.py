"""Small real models, and real servers that serve them."""

import asyncio
import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import loader
from cnnserve.model.loader import OpenVersion
from cnnserve.registry.opening import VersionOpener
from cnnserve.registry.registry import Registry
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import Golden, Manifest, OnnxInfo, Parity, Preprocessing, Resize, TensorInfo
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.session import Session

REPOSITORY = Path(__file__).parent.parent / "model_repo"
SIDE = 8
CLASSES = ("dark", "left", "bright")
# Seconds after which a wait counts as hung. What works ends long before, even on a busy machine.
HANG_S = 600.0
_BOUND = re.compile(r"gRPC port (\d+), HTTP port (\d+)")


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Returns the bytes of a PNG file with these pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def picture(kind: str) -> bytes:
    """Returns a PNG for which the tiny model gives class `kind` a probability of almost 1."""
    pixels = np.zeros((SIDE, SIDE), np.uint8)
    if kind == "bright":
        pixels[:] = 255
    elif kind == "left":
        pixels[:, : SIDE // 2] = 255
    return png(pixels)


def tiny_onnx(*, softmax: bool = True, batch: str | int = "batch", datatype: int = TensorProto.UINT8) -> bytes:
    """Returns a classifier of 8x8 grey images (NHWC) into dark, left and bright.

    It is a linear layer over the means of the left and the right half.
    """
    weights = np.zeros((SIDE, SIDE, len(CLASSES)), np.float32)
    weights[:, : SIDE // 2] = [-20, 20, 10]
    weights[:, SIDE // 2 :] = [-20, -20, 30]
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "weights", "bias"], ["logits"]),
        helper.make_node("Softmax" if softmax else "Identity", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", datatype, [batch, SIDE, SIDE, 1])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, len(CLASSES)])],
        [
            numpy_helper.from_array(weights.reshape(-1, len(CLASSES)) / (255 * SIDE * SIDE), "weights"),
            numpy_helper.from_array(np.array([10, 0, -5], np.float32), "bias"),
            numpy_helper.from_array(np.array([-1, SIDE * SIDE], np.int64), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def free_onnx(side: int | None = None) -> bytes:
    """Returns a classifier that has one class for each pixel, of images of any size or of `side` x `side` pixels."""
    sizes = ["h", "w"] if side is None else [side, side]
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["image", "flat"], ["scores"])],
        "free",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *sizes])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", "c" if side is None else side * side])],
        [numpy_helper.from_array(np.array([0, -1], np.int64), "flat")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def half_free_onnx() -> bytes:
    """Returns a classifier whose file declares images of any size, but which runs only if they have 3 * 64 values."""
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["rows"]),
            helper.make_node("MatMul", ["rows", "weights"], ["scores"]),
        ],
        "half_free",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(CLASSES)])],
        [numpy_helper.from_array(np.ones((192, len(CLASSES)), np.float32), "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


# The preprocessing for `wide_onnx`, as its config.pbtxt states it.
WIDE_IMAGE = """parameters { key: "cnnserve.image" value { string_value:
  '{"color": "L", "resize": {"mode": "exact", "size": [8, 8]}, "mean": [0], "std": [1], "normalize": "none"}' } }
"""


def write_wide(root: Path, classes: int) -> None:
    """Writes models `fixed` and `free` with `classes` classes. Only the file of `fixed` declares their number."""
    for name in ("fixed", "free"):
        (root / name / "1").mkdir(parents=True)
        (root / name / "1" / "model.onnx").write_bytes(wide_onnx(classes, fixed=name == "fixed"))


def wide_onnx(classes: int, *, fixed: bool = True) -> bytes:
    """Returns a classifier of 8x8 grey images (NHWC) into `classes` classes. Its file is small, whatever `classes` is.

    The last class has the largest value. `fixed`: the file declares the number of classes; otherwise only a run shows
    it.
    """
    constants = {"first": 0.0, "count": float(classes), "step": 1.0}
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "pixels"], ["brightness"], keepdims=0),
        helper.make_node("Mul", ["brightness", "scale"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "column"], ["rows"]),
        helper.make_node("ReduceMin", ["floats"], ["darkest"], keepdims=0),
        helper.make_node("Sub", ["darkest", "darkest"], ["nothing"]),
        helper.make_node("Add", ["count", "nothing"], ["end"]),
        helper.make_node("Range", ["first", "count" if fixed else "end", "step"], ["numbers"]),
        helper.make_node("Mul", ["rows", "numbers"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", SIDE, SIDE, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes if fixed else "c"])],
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "pixels"),
            # A white image has values from 0 to 10.
            numpy_helper.from_array(np.array(10 / 255 / classes, np.float32), "scale"),
            numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
            *(numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data: bytes = model.SerializeToString()
    return data


def write_version(
    folder: Path,
    model: bytes | None = None,
    *,
    golden_image: bytes | None = None,
    golden_images: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """Writes a complete version folder `<repository>/<model>/<version>` and returns it.

    `golden_images`: files by name; by default one, golden.png. `changes` replace fields of its manifest.
    """
    golden_images = golden_images or {"golden.png": golden_image or picture("left")}
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model or tiny_onnx())
    (folder / "labels.txt").write_text("\n".join(CLASSES) + "\n")
    for name, data in golden_images.items():
        (folder / name).write_bytes(data)
    spec = Preprocessing("L", Resize("exact", (SIDE, SIDE)), None, (0.0,), (1.0,), "graph")
    tensor = TensorInfo("image", "UINT8", (SIDE, SIDE, 1), "NHWC")
    rows = [Preprocessor(spec, tensor).encoded(image) for image in golden_images.values()]
    session = Session(folder / "model.onnx")
    batch = max(1, session.inputs[0].shape[0])
    expected = np.stack([session.run(row[np.newaxis].repeat(batch, 0))[0][0] for row in rows])
    (folder / "golden.bin").write_bytes(manifests.golden_bytes(expected))
    files = ("model.onnx", "labels.txt", *golden_images, "golden.bin")
    manifest = Manifest(
        model=folder.parent.name,
        version=int(folder.name),
        architecture="tiny",
        parameters=195,
        onnx=OnnxInfo("model.onnx", 18, 10, "fp32"),
        input=tensor,
        output=TensorInfo("probabilities", "FP32", (len(CLASSES),)),
        activation="softmax",
        class_count=len(CLASSES),
        labels="labels.txt",
        max_batch_size=8,
        preprocessing=spec,
        golden=Golden((*golden_images,), "golden.bin", 1e-4, 1e-3),
        parity=Parity({"1": 0.0}, 1e-4, "CPUExecutionProvider"),
        weights={"source": "written by hand"},
        files={name: manifests.digest(folder / name) for name in files},
    )
    text = manifests.to_json(dataclasses.replace(manifest, **changes))
    (folder / manifests.MANIFEST_FILE).write_text(text)
    return folder


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    """Writes the manifest of a version folder again: for its files and its folder as they are now, with `changes`."""
    path = folder / manifests.MANIFEST_FILE
    raw = json.loads(path.read_text())
    place = {"model": folder.parent.name, "version": int(folder.name)}
    files = {name: dataclasses.asdict(manifests.digest(folder / name)) for name in raw["files"]}
    path.write_text(json.dumps(raw | place | {"files": files} | changes))


def as_schema_1(folder: Path) -> Path:
    """Turns a version with one golden image into one of schema 1, as early exporters wrote it; returns its folder."""
    path = folder / manifests.MANIFEST_FILE
    raw = json.loads(path.read_text())
    del raw["origin"], raw["files"]["golden.bin"], raw["preprocessing"]["pad"], raw["preprocessing"]["scale"]
    golden = raw["golden"]
    old = {"image": golden["images"][0], "probabilities": golden_rows(folder)[0].tolist()}
    path.write_text(json.dumps(raw | {"schema": 1, "golden": old | {"tolerance": golden["tolerance"]}}))
    (folder / "golden.bin").unlink()
    return folder


def golden_rows(folder: Path) -> NDArray[np.float32]:
    """Returns the golden probabilities of a version folder: a row for each golden image."""
    manifest = manifests.read(folder)
    assert manifest is not None
    return manifests.golden_probabilities(manifest, lambda name: (folder / name).read_bytes()).copy()


def open_version(folder: ModelFolder, version: int, **options: Any) -> OpenVersion:
    """Opens the files of a version and calls `open_files`."""
    with VersionFiles(folder, version) as files:
        return open_files(files, **options)


def open_tested(folder: ModelFolder, version: int) -> OpenVersion:
    """Opens a version, and runs what of the self-test a busy machine leaves for the time after READY."""
    opened = open_version(folder, version)
    assert opened.info.self_test is not None
    if not opened.info.self_test.complete:
        assert opened.retest is not None
        opened.retest()
    return opened


def open_files(files: VersionFiles, **options: Any) -> OpenVersion:
    """Calls `loader.open_version` for one CPU thread. The engine cache is no folder: no test should build engines."""
    return loader.open_version(files, **{"cpu_threads": 1, "engine_cache": Path(os.devnull)} | options)


def make_registry(root: Path, decoders: DecodingPool, **settings: Any) -> Registry:
    """Returns a registry that loads for one CPU thread; `settings` are those of `VersionOpener`."""
    return Registry(root, VersionOpener(open_files, decoders, **settings))


async def until(condition: Callable[[], bool]) -> None:
    """Waits until `condition` holds, which other tasks or threads must bring about."""
    async with asyncio.timeout(HANG_S):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)


def wait_until(condition: Callable[[], bool], said: Callable[[], object] = str) -> None:
    """Waits until `condition` holds, which other threads or processes must bring about.

    If it never holds, the error contains what `said` returns.
    """
    end = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end, f"it never came: {said()}"
        time.sleep(0.005)


def cpu_seconds(process: subprocess.Popen[Any]) -> float:
    """Returns the CPU time of a process so far, in seconds. Other processes do not add to it, as they do to time."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class RunningServer:
    """A `cnnserve serve` process."""

    process: subprocess.Popen[bytes]
    log_file: Path
    grpc_port: int = 0
    http_port: int = 0

    @property
    def address(self) -> str:
        """The address of the gRPC port."""
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def log(self) -> str:
        """Everything that the server has logged so far."""
        return self.log_file.read_text()

    def terminate(self) -> int:
        """Sends SIGTERM and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end of the server and returns the exit status."""
        return self.process.wait(HANG_S)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits until the log contains `pattern` and returns the match."""
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            if match := re.search(pattern, self.log):
                return match
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in the log (exit code {self.process.poll()}):\n{self.log}")


def spawn(log_file: Path, *arguments: str | Path, stdin: int | None = subprocess.DEVNULL) -> RunningServer:
    """Starts `cnnserve serve` with these flags on free ports of 127.0.0.1, without waiting for it."""
    command = [sys.executable, "-m", "cnnserve", "serve", "--grpc-port", "0", "--http-port", "0", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CNNSERVE_")}
    with log_file.open("wb") as log:
        return RunningServer(subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment), log_file)


@contextlib.contextmanager
def serving(
    log_file: Path, repository: Path | str, *arguments: str | Path, stdin: int | None = subprocess.DEVNULL
) -> Iterator[RunningServer]:
    """Yields a server that has tried to load all its models. Stops it at the end."""
    server = spawn(log_file, "--model-repository", repository, *arguments, stdin=stdin)
    try:
        bound = server.wait_for(_BOUND.pattern)
        server.grpc_port, server.http_port = int(bound[1]), int(bound[2])
        server.wait_for(r"ready; models:|NOT ready; models:")
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()


@contextlib.contextmanager
def as_other_user() -> Iterator[None]:
    """Without root's right to read every file, if this is root."""
    user = os.geteuid()
    if user:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
