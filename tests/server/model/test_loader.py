"""Real loads of versions: where they run, to which sizes they pad, and what remains after a failed load."""

import dataclasses
import gc
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from cnnserve.errors import InvalidInput, ModelLoadFailed
from cnnserve.images.preprocessing import ImageOptions
from cnnserve.model.loader import OpenVersion
from cnnserve.model_config.providers import CPU, Provider
from cnnserve.repository import folders
from cnnserve.repository.manifest import Preprocessing, Resize, TensorInfo
from cnnserve.runtime import cuda, placement, session, workers
from cnnserve.runtime.session import Session, SessionOptions, runtime_version
from support import open_version, png, rewrite_manifest, tiny_onnx, wait_until, write_version

GPU = "instance_group { kind: KIND_GPU }"
FALLBACK = 'parameters { key: "cnnserve.allow_cpu_fallback" value { string_value: "true" } }'
BUCKETS = 'parameters { key: "cnnserve.batch_buckets" value { string_value: "2,4" } }'
TENSORRT = 'optimization { execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }'

needs_cpu_wheel = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="onnxruntime-gpu is installed"
)


def open_with(root: Path, config: str, cpu_threads: int = 2, **options: Any) -> OpenVersion:
    (root / "m").mkdir(exist_ok=True)
    (root / "m" / "config.pbtxt").write_text(config)
    return open_version(folders.find(root, "m"), 1, cpu_threads=cpu_threads, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_version(tmp_path / "m" / "1")
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[SessionOptions]:
    """The options of every session that is opened."""
    # The tiny model is treated as a large one.
    monkeypatch.setattr(workers, "_SMALL_BYTES", 0)
    seen: list[SessionOptions] = []

    def open_session(model: Path, options: SessionOptions) -> Session:
        seen.append(options)
        return Session(model, options)

    monkeypatch.setattr(workers, "Session", open_session)
    return seen


@pytest.mark.parametrize(
    ("config", "budget", "threads", "spin"),
    [
        ("", 4, 4, True),
        ("instance_group { count: 2 }", 2, 1, False),
        # The threads of both instances compute, too. The 3 threads of the session include one of them: 4 in total.
        ("instance_group { count: 2 }", 4, 3, False),
        ("instance_group { count: 3 }", 2, 1, False),
        ('parameters { key: "intra_op_thread_count" value { string_value: "3" } }', 2, 3, True),
    ],
)
def test_instances_share_one_session_and_the_budget(
    root: Path, opened: list[SessionOptions], config: str, budget: int, threads: int, spin: bool
) -> None:
    open_with(root, config, budget)
    (options,) = opened
    assert (options.threads, options.spin) == (threads, spin)


@pytest.fixture
def gpu_in_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loader take the CPU for a GPU: it does all that it does for a GPU, on the CPU execution provider."""
    monkeypatch.setattr(Provider, "chain", [(CPU, {})])
    monkeypatch.setattr(session, "require", lambda _: None)
    monkeypatch.setitem(session._BUFFER_DEVICES, "cuda", "cpu")
    monkeypatch.setitem(placement._ACCEPTED, "cuda", {CPU})


@pytest.mark.usefixtures("gpu_in_name_only")
@pytest.mark.parametrize("graphs", ["", "optimization { cuda { graphs: true } }"])
def test_a_gpu_instance_pads_binds_warms_and_proves_every_bucket(
    root: Path, opened: list[SessionOptions], graphs: str
) -> None:
    version = open_with(root, "instance_group { kind: KIND_GPU count: 2 } instance_group { kind: KIND_CPU }" + graphs)
    assert [options.provider.kind for options in opened] == ["cpu", "cuda", "cuda"]
    test = version.info.self_test
    assert test is not None
    assert list(test.batches) == [1, 2, 3, 4, 8]
    assert (test.tolerance, test.provider) == (1e-2, "CPUExecutionProvider, CUDAExecutionProvider")
    dark, bright = np.zeros((2, 8, 8, 1), np.uint8), np.full((1, 8, 8, 1), 255, np.uint8)
    for instance in version.instances:
        assert instance.run([dark, bright])[0].argmax(axis=1).tolist() == [0, 0, 2]
        assert instance.run([bright])[0].argmax(axis=1).tolist() == [2]


@needs_cpu_wheel
@pytest.mark.parametrize(("config", "device"), [(GPU, "cpu"), ("", "cuda"), (GPU + TENSORRT, "cpu")])
def test_a_gpu_that_is_asked_for_is_a_contract(root: Path, config: str, device: str) -> None:
    with pytest.raises(ModelLoadFailed, match=r'has no \w+ExecutionProvider, .*pip install "cnnserve\[gpu\]"'):
        open_with(root, config, device=device)


@needs_cpu_wheel
def test_the_cpu_takes_over_only_where_the_config_says_so(
    root: Path, opened: list[SessionOptions], caplog: pytest.LogCaptureFixture
) -> None:
    version = open_with(root, "instance_group { kind: KIND_GPU count: 2 }" + FALLBACK)
    assert set(version.info.placement) == {CPU}
    assert len(version.instances) == 2
    assert [options.provider.kind for options in opened] == ["cuda", "cpu"]
    assert "which cnnserve.allow_cpu_fallback allows: the installed onnxruntime has no CUDA" in caplog.text


def test_configured_buckets_are_proved_and_run(root: Path) -> None:
    version = open_with(root, BUCKETS)
    assert version.info.self_test is not None
    assert list(version.info.self_test.batches) == [2, 4, 8]
    (instance,) = version.instances
    image = np.full((1, 8, 8, 1), 255, np.uint8)
    assert instance.run([image, image, image])[0].argmax(axis=1).tolist() == [2, 2, 2]


def test_buckets_of_a_file_with_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    write_version(tmp_path / "m" / "1", tiny_onnx(batch=4), max_batch_size=4)
    assert open_with(tmp_path, "").info.self_test is not None
    with pytest.raises(ModelLoadFailed, match="the ONNX file has the fixed batch size 4"):
        open_with(tmp_path, BUCKETS)


def test_engines_are_kept_by_gpu_and_runtime_and_their_building_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "require", lambda _: None)
    monkeypatch.setattr(cuda, "device_name", lambda _: "NVIDIA H200 (80 GB)")
    seen = []

    def no_session(_: Path, options: SessionOptions) -> Session:
        seen.append(options.provider.options)
        raise ModelLoadFailed("stop here")

    monkeypatch.setattr(workers, "Session", no_session)
    stages: list[str] = []
    with pytest.raises(ModelLoadFailed, match="stop here"):
        open_with(root, GPU + TENSORRT, engine_cache=root / "engines", on_stage=stages.append)
    folder = root / "engines" / f"NVIDIA-H200-80-GB-onnxruntime-{runtime_version()}"
    assert stages == ["building TensorRT engines"]
    # TensorRT would take the engines of another model that has the same nodes.
    [inner] = folder.iterdir()
    assert re.fullmatch("[0-9a-f]{32}", inner.name)
    assert seen[0]["trt_engine_cache_path"] == str(inner)


FAST = 'parameters { key: "cnnserve.preprocess" value { string_value: "fast" } }'


def test_fast_preprocessing_and_the_pixel_limit_are_configured(root: Path) -> None:
    limit = 'parameters { key: "cnnserve.max_pixels" value { string_value: "1000" } }'
    opened = open_with(root, FAST + limit)
    assert opened.preprocessor is not None
    assert opened.preprocessor.options == ImageOptions(fast=True, pixel_limit=1000)
    assert opened.info.self_test is not None
    assert opened.info.self_test.fast_difference is not None
    with pytest.raises(InvalidInput, match="40x30 pixels, this model's limit is 1,000 pixels"):
        opened.preprocessor.row(png(np.zeros((30, 40), np.uint8)))


@pytest.mark.parametrize("preprocess", ["", FAST])
def test_the_pixel_limit_is_for_clients_only(root: Path, preprocess: str) -> None:
    """The golden image has 64 pixels. The version is no worse because its clients may send smaller ones only."""
    limit = 'parameters { key: "cnnserve.max_pixels" value { string_value: "63" } }'
    opened = open_with(root, preprocess + limit)
    assert opened.info.self_test is not None
    assert opened.preprocessor is not None
    with pytest.raises(InvalidInput, match="8x8 pixels, this model's limit is 63 pixels"):
        opened.preprocessor.row(png(np.zeros((8, 8), np.uint8)))


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [
        ("cnnserve.preprocess", "quick", 'cnnserve.preprocess is "quick", expected exact or fast'),
        ("cnnserve.max_pixels", "0", "a whole number of at least 1"),
        (
            "cnnserve.preprocessing",
            "fast",
            '"cnnserve.preprocessing" is unknown, expected one of .*cnnserve.preprocess',
        ),
    ],
)
def test_invalid_image_parameters_are_refused(root: Path, parameter: str, value: str, said: str) -> None:
    with pytest.raises(ModelLoadFailed, match=said):
        open_with(root, f'parameters {{ key: "{parameter}" value {{ string_value: "{value}" }} }}')


def test_without_a_manifest_they_have_no_effect_and_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(tiny_onnx())
    with pytest.raises(ModelLoadFailed, match=r"cnnserve\.preprocess has no effect, because without a manifest"):
        open_with(tmp_path, FAST)


def test_a_failed_load_leaves_no_thread(root: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="batch_size is 99"):
        open_with(root, 'max_batch_size: 4 model_warmup { name: "w" batch_size: 99 }')

    def has_ended() -> bool:
        gc.collect()
        return not any(thread.name.startswith("m-1-") for thread in threading.enumerate())

    wait_until(has_ended)


@pytest.mark.parametrize(("model", "version"), [("other", 1), ("m", 2)])
def test_a_version_of_another_folder_is_refused(root: Path, model: str, version: int) -> None:
    shutil.copytree(root / "m" / "1", root / model / str(version))
    said = f"is that of model m version 1, but the folder is that of model {model} version {version};.*cnnserve copy"
    with pytest.raises(ModelLoadFailed, match=said):
        open_version(folders.find(root, model), version)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": TensorInfo("pixels", "UINT8", (8, 8, 1), "NHWC")}, "input 'image', the manifest says 'pixels'"),
        ({"output": TensorInfo("logits", "FP32", (3,))}, "output 'probabilities', the manifest says 'logits'"),
        (
            {"input": TensorInfo("image", "FP32", (8, 8, 1), "NHWC")},
            r"input 'image' is UINT8 \[-1, 8, 8, 1\], the manifest says FP32 \[-1, 8, 8, 1\]",
        ),
        (
            {"input": TensorInfo("image", "UINT8", (8, 4, 1), "NHWC")},
            r"input 'image' is UINT8 \[-1, 8, 8, 1\], the manifest says UINT8 \[-1, 8, 4, 1\]",
        ),
    ],
)
def test_the_manifest_says_what_the_file_takes_and_gives(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = write_version(tmp_path / "m" / "1")
    if changes.get("input") and changes["input"].shape == (8, 4, 1):
        changes = changes | {"preprocessing": Preprocessing("L", Resize("exact", (8, 4)), None, (0,), (1,), "graph")}
    rewrite_manifest(folder, **{name: dataclasses.asdict(value) for name, value in changes.items()})
    with pytest.raises(ModelLoadFailed, match=said):
        open_version(folders.find(tmp_path, "m"), 1)
