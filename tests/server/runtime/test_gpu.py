"""A real NVIDIA GPU: right probabilities, warm-up of every shape before READY, and no fallback to another provider.

Beside the packages of the server with onnxruntime-gpu, these tests need onnx and pytest only, so they also run on
machines on which nothing else can be installed (`bench/gpu/run.sh` does that with all architectures):

    CNNSERVE_GPU_REPOSITORY=DIR PYTHONPATH=server:export:client:tests \
        python -m pytest -c /dev/null --rootdir . --noconftest tests/server/runtime/test_gpu.py

The model repository (default: `model_repo`) contains exported models. Each is tested in the precision in which it was
published, fp32 or fp16, but not int8, which is for CPUs.

With CNNSERVE_GPU_TESTS_ON=cpu, the tests that a CPU can pass, too, run on the CPU, to try them without a GPU.
"""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from cnnserve.batching.buckets import default_buckets, padded_size
from cnnserve.batching.instance import ModelInstance
from cnnserve.datatypes import NUMPY_TYPES, Rows
from cnnserve.errors import ModelLoadFailed
from cnnserve.model.loader import OpenVersion
from cnnserve.model_config.pbtxt import CONFIG_FILE
from cnnserve.model_config.providers import Provider, cuda_options
from cnnserve.repository import folders, manifest
from cnnserve.runtime import cuda
from cnnserve.runtime.session import ProviderUnavailable, Session, SessionOptions, require
from support import open_version

REPOSITORY = Path(os.environ.get("CNNSERVE_GPU_REPOSITORY", Path(__file__).parents[3] / "model_repo"))


def _precision(model: str) -> str:
    """Returns the precision of the newest version of a model."""
    versions = folders.find(REPOSITORY, model).versions
    promised = manifest.read(versions[max(versions)])
    return promised.onnx.precision if promised else ""


MODELS = sorted(path.name for path in REPOSITORY.iterdir() if path.is_dir() and _precision(path.name) != "int8")
ON_CPU = os.environ.get("CNNSERVE_GPU_TESTS_ON") == "cpu"
PROVIDER = Provider() if ON_CPU else Provider("cuda", 0, cuda_options({}))
TF32_TOLERANCE = 1e-2
# By name: options of the accelerator, and whether they may reduce precision.
VARIANTS: dict[str, tuple[dict[str, str], bool]] = {
    "fp32": ({"use_tf32": "0"}, False),
    "tf32": ({}, True),
    "exhaustive": ({"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}, False),
    "nhwc": ({"use_tf32": "0", "prefer_nhwc": "1"}, False),
    "graphs": ({"use_tf32": "0", "enable_cuda_graph": "1"}, False),
}
REQUESTS = 1000


def _missing() -> str:
    """Returns what this machine lacks for the tests, "" if nothing."""
    try:
        require(PROVIDER)
        if not ON_CPU:
            cuda.device_name(0)
    except (ProviderUnavailable, OSError) as error:
        return str(error)
    return ""


_LACKING = _missing()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(_LACKING), reason=_LACKING)]
only_gpu = pytest.mark.skipif(ON_CPU, reason="needs a GPU")


def accelerator(options: dict[str, str], more: str = "") -> str:
    if ON_CPU:
        return "\ninstance_group { kind: KIND_CPU }\n"
    parameters = " ".join(f'parameters {{ key: "{key}" value: "{value}" }}' for key, value in options.items())
    return (
        "\ninstance_group { kind: KIND_GPU }\noptimization { execution_accelerators { "
        f'gpu_execution_accelerator {{ name: "cuda" {parameters} }} }} {more} }}\n'
    )


def open_on_gpu(root: Path, model: str, config: str) -> OpenVersion:
    """Opens the newest version of a copy of `model`, with `config` added to its config.pbtxt."""
    copy = root / model
    shutil.copytree(REPOSITORY / model, copy)
    path = copy / CONFIG_FILE
    path.write_text((path.read_text() if path.exists() else "") + config)
    folder = folders.find(root, model)
    return open_version(folder, max(folder.versions), cpu_threads=os.cpu_count() or 1)


def on_cpu(root: Path, model: str) -> Session:
    folder = folders.find(root, model)
    path = folder.versions[max(folder.versions)]
    promised = manifest.read(path)
    assert promised is not None
    return Session(path / promised.onnx.file, SessionOptions(threads=os.cpu_count() or 1))


def images(session: Session, count: int, seed: int) -> Rows:
    spec = session.inputs[0]
    values = np.random.default_rng(seed).integers(0, 256, (count, *spec.shape[1:]))
    return values.astype(NUMPY_TYPES[spec.datatype]) if spec.datatype == "UINT8" else (values / 255).astype(np.float32)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model", MODELS)
def test_the_probabilities_are_the_cpus(tmp_path: Path, model: str, variant: str) -> None:
    options, reduced = VARIANTS[variant]
    version = open_on_gpu(tmp_path, model, accelerator(options))
    plain = on_cpu(tmp_path, model)
    promised = version.info.manifest
    assert promised is not None
    allowed = max(promised.golden.tolerance, TF32_TOLERANCE if reduced else 0.0)
    maximum = version.info.settings.max_batch_size
    # Every bucket is used full, and once not full; all twice, so that captured graphs are replayed with other images.
    sizes = sorted({*default_buckets(maximum), *(size - 1 for size in default_buckets(maximum) if size > 2)})
    for seed, size in enumerate([*sizes, *sizes]):
        rows = images(plain, size, seed)
        (answer,) = version.instances[0].run([rows])[:1]
        worst = float(np.abs(answer.astype(np.float64) - plain.run(rows)[0]).max())
        print(f"{model} {variant} batch {size}: largest difference {worst:.1e} (allowed {allowed:.0e})")
        assert worst <= allowed


@pytest.mark.parametrize("model", MODELS)
def test_every_node_is_on_the_gpu_and_every_bucket_was_proved(tmp_path: Path, model: str) -> None:
    info = open_on_gpu(tmp_path, model, accelerator({})).info
    assert set(info.placement) == {PROVIDER.name}
    assert info.self_test is not None
    assert info.self_test.provider == PROVIDER.name
    # A CPU needs no fixed batch sizes.
    assert ON_CPU or tuple(info.self_test.batches) == default_buckets(info.settings.max_batch_size)


@only_gpu
@pytest.mark.parametrize("model", MODELS)
def test_no_size_costs_more_the_first_time(tmp_path: Path, model: str) -> None:
    """Of the first 1,000 runs of mixed sizes, the p99 is at most 3 times the median of the run's bucket."""
    version = open_on_gpu(tmp_path, model, accelerator({}))
    maximum = version.info.settings.max_batch_size
    buckets = default_buckets(maximum)
    rows = images(on_cpu(tmp_path, model), maximum, 0)
    sizes = np.random.default_rng(1).integers(1, maximum + 1, REQUESTS)
    times: dict[int, list[float]] = {bucket: [] for bucket in buckets}
    for size in sizes:
        times[padded_size(buckets, int(size))].append(_seconds(version.instances[0], rows[:size]))
    ratios = np.concatenate([np.array(spent) / np.median(spent) for spent in times.values() if spent])
    p99 = float(np.quantile(ratios, 0.99))
    print(f"{model}: p99 {p99:.2f} x the bucket's median, largest {ratios.max():.2f}")
    assert p99 <= 3


def _seconds(instance: ModelInstance, rows: Rows) -> float:
    started = time.perf_counter()
    instance.run([rows])
    return time.perf_counter() - started


@only_gpu
def test_pinned_input_changes_nothing(tmp_path: Path) -> None:
    config = accelerator({"use_tf32": "0"}, "input_pinned_memory { enable: true }")
    version = open_on_gpu(tmp_path, MODELS[0], config)
    plain = on_cpu(tmp_path, MODELS[0])
    # Two parts, which are assembled in the pinned buffer.
    rows = images(plain, 3, 0)
    (answer,) = version.instances[0].run([rows[:1], rows[1:]])[:1]
    np.testing.assert_allclose(answer, plain.run(rows)[0], atol=1e-4)


@only_gpu
def test_two_instances_have_a_session_each(tmp_path: Path) -> None:
    version = open_on_gpu(tmp_path, MODELS[0], "\ninstance_group { kind: KIND_GPU count: 2 }\n")
    rows = images(on_cpu(tmp_path, MODELS[0]), 2, 0)
    one, two = (instance.run([rows])[0] for instance in version.instances)
    np.testing.assert_allclose(one, two, atol=TF32_TOLERANCE)


@only_gpu
def test_a_gpu_that_is_not_there_fails_the_load(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="GPU 99"):
        open_on_gpu(tmp_path, MODELS[0], accelerator({"device_id": "99"}))


@only_gpu
def test_a_node_that_only_the_cpu_has_fails_the_load_unless_permitted(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, uint8 = onnx.helper, onnx.TensorProto.UINT8
    folder = tmp_path / "shifts" / "1"
    folder.mkdir(parents=True)
    graph = helper.make_graph(
        [helper.make_node("BitShift", ["x", "by"], ["y"], direction="LEFT")],
        "shifts",
        [helper.make_tensor_value_info("x", uint8, ["n", 4])],
        [helper.make_tensor_value_info("y", uint8, ["n", 4])],
        [helper.make_tensor("by", uint8, [1], [1])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    found = folders.find(tmp_path, "shifts")
    with pytest.raises(ModelLoadFailed, match=r"1 of 1 nodes run on CPU.* \(1 BitShift\)"):
        open_version(found, 1, device="cuda")
    (tmp_path / "shifts" / CONFIG_FILE).write_text(
        'parameters { key: "cnnserve.allow_cpu_fallback" value { string_value: "true" } }'
    )
    assert open_version(found, 1, device="cuda").info.placement == {"CPUExecutionProvider": 1}
