"""Sessions of real models: bound buffers compared with plain runs, options, and no fallback to another provider."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from cnnserve.batching.buckets import default_buckets
from cnnserve.batching.instance import ModelInstance
from cnnserve.datatypes import Rows
from cnnserve.errors import InferenceFailed, ModelLoadFailed
from cnnserve.model_config.providers import CPU, Provider, RuntimeOptions, cuda_options
from cnnserve.runtime.bound_runner import BoundRunner
from cnnserve.runtime.session import ProviderUnavailable, Session, SessionOptions, _distributions
from support import CLASSES, SIDE, tiny_onnx

MAXIMUM = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "model.onnx"
    path.write_bytes(tiny_onnx())
    return path


@pytest.fixture(scope="module")
def session(model: Path) -> Session:
    return Session(model)


def images(count: int, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)


@given(
    st.lists(st.integers(1, MAXIMUM), min_size=1, max_size=5),
    st.one_of(st.just(default_buckets(MAXIMUM)), st.sets(st.integers(1, MAXIMUM), min_size=1).map(sorted)),
)
def test_bound_runs_equal_plain_runs(session: Session, sizes: list[int], buckets: list[int]) -> None:
    runner = BoundRunner(session, buckets)
    instance = ModelInstance(runner, "bound", buckets, runner.buffer)
    answers = []
    for seed, size in enumerate(sizes):
        batch = images(size, seed)
        parts = [batch[:1], batch[1:]] if size > 1 else [batch]
        (answer,) = instance.run(parts)
        np.testing.assert_allclose(answer, session.run(batch)[0], rtol=1e-5, atol=1e-7)
        answers.append((answer, answer.copy()))
    instance.close()
    # Later runs use the same buffers and must not change earlier outputs.
    assert all(np.array_equal(answer, before) for answer, before in answers)


def test_an_instance_puts_batches_together_in_the_bound_buffer(session: Session) -> None:
    runner = BoundRunner(session, [4])
    instance = ModelInstance(runner, "bound", (4,), runner.buffer)
    first = images(3)
    (answer,) = instance.run([first[:2], first[2:]])
    assert np.array_equal(runner.buffer(4)[:3], first)  # type: ignore[index]
    assert not runner.buffer(4)[3:].any()  # type: ignore[index]
    np.testing.assert_allclose(answer, session.run(first)[0], rtol=1e-5)
    assert runner.buffer(5) is None
    instance.close()


def test_a_read_only_batch_can_be_bound(session: Session) -> None:
    data = images(2)
    data.flags.writeable = False
    (answer,) = BoundRunner(session, [2]).run(data)
    np.testing.assert_allclose(answer, session.run(data)[0], rtol=1e-5)


def test_a_bound_run_that_fails_is_an_inference_failure(session: Session) -> None:
    with pytest.raises(InferenceFailed, match="ONNX Runtime"):
        session.bind(2).run(np.zeros((2, 3), np.float64))


def test_free_sizes_cannot_be_bound(session: Session, tmp_path: Path) -> None:
    assert session.bindable
    assert not Session(_free_size(tmp_path / "free.onnx")).bindable


def _free_size(path: Path) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "h"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "h"])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "free", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize(
    "runtime",
    [
        RuntimeOptions(graph_level="off", memory_arena=False, memory_pattern=False),
        RuntimeOptions(parallel=True, inter_op_threads=2, arena_shrinkage="cpu:0"),
        RuntimeOptions(graph_level="basic", device_allocator_for_initializers=True),
    ],
)
def test_runtime_options_do_not_change_the_answer(model: Path, session: Session, runtime: RuntimeOptions) -> None:
    other = Session(model, SessionOptions(threads=2, spin=False, runtime=runtime))
    np.testing.assert_allclose(other.run(images(3))[0], session.run(images(3))[0], rtol=1e-5)


def test_all_nodes_are_where_they_were_asked_to_be(session: Session) -> None:
    assert set(session.placement) == {CPU}
    assert session.outputs[0].shape == (-1, len(CLASSES))


def test_a_wheel_without_the_provider_is_told_with_the_fix(model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    options = SessionOptions(provider=Provider("cuda", 0, cuda_options({})))
    with pytest.raises(ProviderUnavailable, match=r'run pip uninstall -y onnxruntime && pip install "cnnserve\[gp'):
        Session(model, options)


@pytest.mark.parametrize(
    ("ir_version", "opset", "limit"), [(99, 18, "IR version"), (10, 99, "opset"), (99, 99, "IR version")]
)
def test_a_format_that_is_too_new_names_the_versions_and_the_fix(
    ir_version: int, opset: int, limit: str, tmp_path: Path
) -> None:
    proto = onnx.load_from_string(tiny_onnx())
    proto.ir_version, proto.opset_import[0].version = ir_version, opset
    path = tmp_path / "new.onnx"
    path.write_bytes(proto.SerializeToString())
    wheel, version = re.escape(next(iter(_distributions()))), re.escape(onnxruntime.__version__)
    with pytest.raises(
        ModelLoadFailed,
        match=rf"^new\.onnx cannot be loaded: the file has IR version {ir_version} and opset {opset} of ai\.onnx, but "
        rf"{wheel} {version} reads up to {limit} \d+; pip install -U {wheel}, or .* cnnserve export … --opset 18 or ",
    ):
        Session(path)


def test_the_runtime_reports_to_nobody() -> None:
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
