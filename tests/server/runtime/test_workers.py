"""The number of threads of a version's session."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from cnnserve.model_config.execution import Execution
from cnnserve.model_config.providers import RuntimeOptions
from cnnserve.model_config.settings import resolve
from cnnserve.runtime import workers
from support import REPOSITORY

LENET = REPOSITORY / "lenet5" / "1" / "model.onnx"


def threads(plan: Execution, cpu_threads: int, tmp_path: Path) -> int:
    _, [session] = workers.open_sessions(LENET, plan, cpu_threads, tmp_path, lambda _: None)
    count: int = session._session.get_session_options().intra_op_num_threads
    return count


def test_a_small_model_runs_on_its_instances_thread_alone(tmp_path: Path) -> None:
    assert threads(Execution(), 4, tmp_path) == 1


def test_a_larger_one_gets_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_SMALL_RUN_S", 0.0)
    assert threads(Execution(), 4, tmp_path) == 4
    monkeypatch.setattr(workers, "_SMALL_RUN_S", 60.0)
    monkeypatch.setattr(workers, "_SMALL_BYTES", 0)
    assert threads(Execution(), 4, tmp_path) == 4


def test_what_the_config_says_holds(tmp_path: Path) -> None:
    assert threads(Execution(runtime=RuntimeOptions(intra_op_threads=3)), 4, tmp_path) == 3


def inline(model: Path, tmp_path: Path, plan: Execution | None = None) -> int:
    """Rows of a batch that the event loop runs; 0: none."""
    plan, sessions = workers.open_sessions(model, plan or Execution(), 2, tmp_path, lambda _: None)
    settings = resolve("m", None, None, sessions[0].inputs, sessions[0].outputs)
    made = workers.make_workers("m", plan, sessions, settings)
    runs = workers.inline_runs(plan, made, settings)
    return runs.rows_at_most if runs else 0


def test_the_event_loop_runs_a_model_that_is_quick(tmp_path: Path) -> None:
    assert 1 <= inline(LENET, tmp_path) <= 32


def test_the_event_loop_runs_no_model_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_INLINE_S", 0.0)
    assert inline(LENET, tmp_path) == 0


def test_the_event_loop_runs_no_model_of_several_instances_or_threads(tmp_path: Path) -> None:
    assert inline(LENET, tmp_path, Execution(cpu_instances=2)) == 0
    assert inline(LENET, tmp_path, Execution(runtime=RuntimeOptions(intra_op_threads=2))) == 0
    assert inline(LENET, tmp_path, Execution(batch_buckets=(1, 2))) == 0


def test_the_event_loop_runs_no_model_with_a_loop(tmp_path: Path) -> None:
    condition = helper.make_node("ReduceMax", ["image"], ["top"], keepdims=0)
    same = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["same"])],
        "same",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", 3])],
    )
    nodes = [
        condition,
        helper.make_node("Cast", ["top"], ["is"], to=TensorProto.BOOL),
        helper.make_node("If", ["is"], ["y"], then_branch=same, else_branch=same),
    ]
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("image", "y")]
    graph = helper.make_graph(nodes, "g", rows[:1], rows[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    assert inline(tmp_path / "m.onnx", tmp_path) == 0
