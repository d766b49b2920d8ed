"""The number of threads of a version's session."""

from pathlib import Path

import pytest

from cnnserve.model_config.execution import Execution
from cnnserve.model_config.providers import RuntimeOptions
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
