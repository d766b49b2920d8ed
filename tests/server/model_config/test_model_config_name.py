"""`--model-config-name NAME`: if a model has configs/NAME.pbtxt, the server reads it instead of config.pbtxt."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnserve.config.sources import from_sources
from cnnserve.registry.poller import ModelSight, look
from cnnserve.wire import open_inference_pb2 as o
from oip import Oip
from support import RunningServer, serving, write_version

NAMED = ("--model-config-name", "small")


def write(root: Path, name: str, *, named: str | None, config: str | None = "max_batch_size: 8") -> Path:
    folder = write_version(root / name / "1").parent
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    (folder / "configs").mkdir()
    if named is not None:
        (folder / "configs" / "small.pbtxt").write_text(named)
    return folder


def batch(oip: Oip, model: str) -> int:
    size: int = oip("ModelConfig", o.ModelConfigRequest(name=model)).config.max_batch_size
    return size


def test_a_flag_a_variable_a_key(tmp_path: Path) -> None:
    arguments = ["--model-repository", str(tmp_path)]
    file = tmp_path / "c.toml"
    file.write_text('model_config_name = "c"')
    assert from_sources(arguments, {}).model_config_name == ""
    assert from_sources([*arguments, "--config", str(file)], {}).model_config_name == "c"
    assert from_sources(arguments, {"CNNSERVE_MODEL_CONFIG_NAME": "b-1.2_x"}).model_config_name == "b-1.2_x"
    assert from_sources([*arguments, "--model-config-name", "a"], {}).model_config_name == "a"


def test_it_takes_the_place_of_the_usual_file_where_it_is(tmp_path: Path) -> None:
    root = tmp_path / "r"
    write(root, "named", named="max_batch_size: 2")
    write(root, "alone", named="max_batch_size: 3", config=None)
    write(root, "usual", named=None)
    with serving(tmp_path / "log", root, *NAMED) as server, Oip(server.address) as oip:
        assert [batch(oip, name) for name in ("named", "alone", "usual")] == [2, 3, 8]
    with serving(tmp_path / "log", root) as server, Oip(server.address) as oip:
        assert batch(oip, "named") == 8


def test_its_version_policy_counts(tmp_path: Path) -> None:
    write(tmp_path / "r", "m", named="max_batch_size: 2 version_policy { specific { versions: 1 } }")
    write_version(tmp_path / "r" / "m" / "2")
    with serving(tmp_path / "log", tmp_path / "r", *NAMED) as server, Oip(server.address) as oip:
        assert [(row.version, row.state) for row in oip("RepositoryIndex").models] == [("1", "READY")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_batch_sizes: 2", r"^configs/small\.pbtxt line 1:1 : "),
        ("max_batch_size: -2", r"^configs/small\.pbtxt: max_batch_size is -2"),
        ("optimization { graph { level: 7 } }", r"^configs/small\.pbtxt: optimization\.graph\.level is 7"),
        # A file that is not UTF-8 is an error; the server must not read config.pbtxt instead.
        ("\xff", r"^configs/small\.pbtxt cannot be read: .*; save it as UTF-8"),
        ('name: "other"', r'^configs/small\.pbtxt: name is "other"'),
    ],
)
def test_what_is_wrong_with_it_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    folder = write(tmp_path / "r", "m", named=None)
    (folder / "configs" / "small.pbtxt").write_bytes(text.encode("latin-1"))
    with serving(tmp_path / "log", tmp_path / "r", *NAMED) as server, Oip(server.address) as oip:
        [row] = oip("RepositoryIndex").models
        assert row.state == "UNAVAILABLE"
        assert re.search(said, row.reason), row.reason


@pytest.mark.parametrize("change", ["content", "time", "gone", "new"])
def test_a_change_is_seen_by_polls(tmp_path: Path, change: str) -> None:
    folder = write(tmp_path, "m", named=None if change == "new" else "max_batch_size: 2")
    file = folder / "configs" / "small.pbtxt"
    seen: dict[str, ModelSight] = {}

    def poll() -> object:
        nonlocal seen
        seen = look(tmp_path, seen, "small")
        return seen["m"].request, sorted(seen["m"].loadable)

    before = [poll() for _ in range(3)][-1]
    (folder / "configs" / "other.pbtxt").write_text("")
    assert poll() == before
    match change:
        case "content" | "new":
            file.write_text("max_batch_size: 4 ")
        case "time":
            os.utime(file, ns=(1, 1))
        case "gone":
            file.unlink()
    polls = [poll() for _ in range(3)]
    assert polls[0] != before
    # Like every change outside of a version folder, it must stay unchanged for one poll first.
    assert [loadable for _, loadable in polls] == [[], [], [1]]  # type: ignore[misc]


def test_polls_load_what_changed(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", "m", named="max_batch_size: 2")
    file = folder / "configs" / "small.pbtxt"
    flags = (*NAMED, "--model-control-mode", "poll", "--poll-interval-s", "0.1")
    with serving(tmp_path / "log", tmp_path / "r", *flags) as server, Oip(server.address) as oip:
        assert batch(oip, "m") == 2
        reloads(server, lambda: file.write_text("max_batch_size: 4"))
        assert batch(oip, "m") == 4
        reloads(server, file.unlink)
        assert batch(oip, "m") == 8


def reloads(server: RunningServer, change: Callable[[], object]) -> None:
    loads = server.log.count("READY in")
    change()
    server.wait_for(f"(?s)(READY in.*){{{loads + 1}}}")


def test_loads_by_call_read_it(tmp_path: Path) -> None:
    folder = write(tmp_path / "r", "m", named="max_batch_size: 2")
    flags = (*NAMED, "--model-control-mode", "explicit", "--allow-model-control")
    load = o.RepositoryModelLoadRequest(model_name="m")
    with serving(tmp_path / "log", tmp_path / "r", *flags) as server, Oip(server.address) as oip:
        oip("RepositoryModelLoad", load)
        assert batch(oip, "m") == 2
        (folder / "configs" / "small.pbtxt").write_text("max_batch_size: 4")
        oip("RepositoryModelLoad", load)
        assert batch(oip, "m") == 4
        # The config of a load takes precedence over the file; if it is wrong, the error names it.
        own = o.RepositoryModelLoadRequest(model_name="m")
        own.parameters["config"].string_param = '{"max_batch_size": 6}'
        oip("RepositoryModelLoad", own)
        assert batch(oip, "m") == 6
        own.parameters["config"].string_param = '{"max_batch_size": -6}'
        assert "version 1: parameter config: max_batch_size is -6" in oip.fails("RepositoryModelLoad", own)[1]
        oip("RepositoryModelLoad", load)
        assert batch(oip, "m") == 4
