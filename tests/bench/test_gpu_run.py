"""The script for a machine with a GPU: how it shares its time, goes on where it ended, and runs on the CPU."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import HANG_S, REPOSITORY

GPU = REPOSITORY.parent / "bench" / "gpu"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


steps = load("steps")


class Clock:
    """A clock that only the steps move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def step(self, key: str, takes: float, needs: float = 1.0) -> object:
        def run() -> dict[str, float]:
            self.now += takes
            return {"value": takes}

        return steps.Step(key, needs, run, lambda: {"value": 0.5})

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Ends a block as the alarm would, only that the block has run to its end by then."""
        until = self.now + seconds
        yield
        if self.now > until:
            raise steps.OutOfTime


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(clock: Clock, kept: object, end: float, *todo: object) -> bool:
    complete: bool = steps.run_part(todo, kept, end, clock=clock, limit=clock.limit)
    return complete


def test_a_part_runs_what_there_is_time_for(tmp_path: Path, clock: Clock) -> None:
    kept = steps.Kept(tmp_path / "part.json")
    assert not run(clock, kept, 10, clock.step("a", 4), clock.step("b", 4), clock.step("c", 4, needs=3))
    assert (clock.now, set(kept.results)) == (8, {"a", "b"})


def test_a_step_that_takes_too_long_is_cut_and_run_again_by_the_next_start(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "part.json"
    assert not run(clock, steps.Kept(path), 10, clock.step("a", 4), clock.step("b", 40))
    kept = steps.Kept(path)
    assert kept.results == {"a": {"value": 4}, "b": {"value": 0.5, "cut": True}}
    assert run(clock, kept, 100, clock.step("a", 5), clock.step("b", 6))
    assert steps.Kept(path).results == {"a": {"value": 4}, "b": {"value": 6}}


def test_a_step_that_fails_ends_neither_its_part_nor_its_chance(tmp_path: Path, clock: Clock) -> None:
    def fail() -> dict[str, float]:
        raise SystemExit("the server did not start")

    path = tmp_path / "part.json"
    kept = steps.Kept(path)
    assert run(clock, kept, 10, steps.Step("a", 1, fail), clock.step("b", 1))
    assert kept.failed == ["a"]
    assert "the server did not start" in kept.results["a"]["error"]
    kept = steps.Kept(path)
    assert run(clock, kept, 10, clock.step("a", 2), clock.step("b", 3))
    assert kept.results == {"a": {"value": 2}, "b": {"value": 1}}


def test_the_end_of_the_process_is_no_failure_of_a_step(tmp_path: Path, clock: Clock) -> None:
    def end() -> dict[str, float]:
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run(clock, steps.Kept(tmp_path / "part.json"), 10, steps.Step("a", 1, end))


@given(st.lists(st.floats(1, 300), min_size=1, max_size=8), st.floats(0, 600), st.data())
def test_parts_share_the_time_that_is_left_and_end_in_time(
    budgets: list[float], end: float, data: st.DataObject
) -> None:
    now = 0.0
    for place in range(len(budgets)):
        until = steps.part_end(now, end, budgets[place:])
        assert now <= until <= max(now, end) + 1e-6
        # A part gets its share, because all parts before it ended in theirs.
        assert until - now >= end * budgets[place] / sum(budgets) - 1e-6
        now += (until - now) * data.draw(st.floats(0, 1))


def test_the_alarm_ends_a_wait() -> None:
    code = "import steps, time\ntry:\n with steps.limited(0.05): time.sleep(600)\nexcept steps.OutOfTime: print('cut')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=GPU, capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout == "cut\n"


def started(output: Path, parts: str) -> "subprocess.Popen[str]":
    words = ["--provider", "cpu", "--size", "least", "--network", "lenet5", "--models", REPOSITORY, "--output", output]
    return subprocess.Popen(
        [str(GPU / "run.sh"), *map(str, words), "--parts", parts],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_second_start_goes_on_where_the_first_was_ended(tmp_path: Path) -> None:
    plain = tmp_path / "parts" / "plain.json"
    with started(tmp_path, "plain,throughput,tail,ceiling") as first:
        end = time.monotonic() + HANG_S
        while not (plain.exists() and json.loads(plain.read_text())["complete"]):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.01)
        first.terminate()
        first.communicate(timeout=HANG_S)
    before = plain.read_bytes()
    with started(tmp_path, "plain,throughput,tail,ceiling") as second:
        said = second.communicate(timeout=HANG_S)[0]
    assert second.returncode == 0, said
    assert "plain  " not in said
    assert plain.read_bytes() == before
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["benchmark"] == "gpu"
    assert result["parts"]["plain"] == json.loads(before)["results"]
    assert {key: len(cells) for key, cells in result["parts"].items() if cells} == {
        "plain": 1,
        "throughput": 2,
        "tail": 1,
        "ceiling": 2,
    }
    assert result["summary"]["share_of_plain"]["fp32"]["of_copied"] > 0
    assert result["summary"]["records"]["offline"]["images_per_s"] == 94620
    assert result["summary"]["front_end_images_per_s"] > 0
    assert len(result["targets"]) == 2


def test_the_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"provider": "cuda"}')
    with started(tmp_path, "plain") as other:
        said = other.communicate(timeout=HANG_S)[0]
    assert other.returncode == 1
    assert "choose another --output" in said
