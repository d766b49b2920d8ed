"""Offline classification without Ray: the parts of a run, going on with it, and the worker of one process."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve import cli
from cnnserve.config.settings import ConfigError
from cnnserve.errors import DeadlineExceeded, InvalidInput, Unsupported
from cnnserve.tools.offline import cli as offline_cli
from cnnserve.tools.offline.runs import RUN_FILE, Part, claimed, image_groups, image_parts, open_run, table_parts
from cnnserve.tools.offline.worker import Task, Worker
from cnnserve.transports.ray_plan import read
from support import picture, write_version

WHAT = {"model": "tiny", "version": 1}


@given(paths=st.lists(st.text(max_size=3), max_size=30), size=st.integers(1, 10))
def test_parts_are_the_input_in_its_order(paths: list[str], size: int) -> None:
    parts = list(image_parts(paths, size))
    assert [path for part in parts for path in part.images] == paths
    assert [part.number for part in parts] == list(range(len(parts)))
    assert all(len(part.images) == size for part in parts[:-1])


def test_each_row_group_is_a_part() -> None:
    assert table_parts([("a", 2), ("b", 1)]) == [
        Part(0, table="a", row_group=0),
        Part(1, table="a", row_group=1),
        Part(2, table="b", row_group=0),
    ]


def test_a_second_start_does_what_is_not_done_and_removes_what_was_cut_off(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    parts = list(image_parts("abcde", 2))
    assert open_run(output, parts, WHAT) == parts
    (output / parts[1].file).write_bytes(b"")
    (output / f".{parts[2].file}.123").write_bytes(b"half")
    assert open_run(output, parts, WHAT) == [parts[0], parts[2]]
    assert sorted(path.name for path in output.iterdir()) == [RUN_FILE, parts[1].file]


def test_results_of_another_run_are_never_mixed(tmp_path: Path) -> None:
    parts = list(image_parts("abcde", 2))
    open_run(tmp_path / "out", parts, WHAT)
    with pytest.raises(InvalidInput, match="version was 1 and is 2; name another folder"):
        open_run(tmp_path / "out", parts, {**WHAT, "version": 2})
    with pytest.raises(InvalidInput, match="results of another run: input_sha256"):
        open_run(tmp_path / "out", list(image_parts("abcdx", 2)), WHAT)
    (tmp_path / "out" / RUN_FILE).write_text("{")
    with pytest.raises(InvalidInput, match="is damaged"):
        open_run(tmp_path / "out", parts, WHAT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").write_text("")
    with pytest.raises(InvalidInput, match="is not empty"):
        open_run(tmp_path / "other", parts, WHAT)
    with pytest.raises(InvalidInput, match=r"cannot use .*mine"):
        open_run(tmp_path / "other" / "mine", parts, WHAT)


def test_files_that_cannot_be_read_have_their_reason(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"12")
    (tmp_path / "large").write_bytes(b"123")
    paths = [str(tmp_path / name) for name in ("small", "large", "absent")]
    ((names, found),) = image_groups(paths, largest=2)
    assert names == paths
    assert found[0] == b"12"
    assert "more than 2 bytes" in str(found[1])
    assert "No such file" in str(found[2])


@pytest.mark.parametrize(
    ("most", "most_bytes", "expected"),
    [(2, 99, [2, 2, 1]), (9, 99, [5]), (9, 25, [2, 1, 2]), (9, 1, [1] * 5)],
)
def test_few_images_and_few_bytes_are_in_memory_at_a_time(
    most: int, most_bytes: int, expected: list[int], tmp_path: Path
) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_bytes(bytes(30 if path.name == "2" else 10))
    groups = list(image_groups(map(str, paths), most, most_bytes))
    assert [len(names) for names, _ in groups] == expected
    assert [name for names, _ in groups for name in names] == list(map(str, paths))


def test_two_runs_at_once_do_not_write_into_one_folder(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with (
        claimed(output),
        pytest.raises(InvalidInput, match=r"another run writes its results into .*out; wait"),
        claimed(output),
    ):
        pass
    with claimed(output):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match=r"cannot use .*file"), claimed(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    "config",
    [
        "max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 8 } }",
        "max_batch_size: 8 dynamic_batching { default_queue_policy { max_queue_size: 3 } }",
    ],
    ids=["short", "shorter than a batch"],
)
def test_a_queue_for_clients_makes_no_image_fail(config: str, tmp_path: Path) -> None:
    with configured(tmp_path, config) as worker:
        outcomes = worker.classify([*[picture("left")] * 100, b"bad"])
    assert [outcome.error for outcome in outcomes[:-1]] == [None] * 100
    assert outcomes[-1].error


def configured(repository: Path, config: str) -> Worker:
    write_version(repository / "tiny" / "1")
    (repository / "tiny" / "config.pbtxt").write_text(config)
    return Worker(Task(read({"repository": str(repository), "models": {"tiny": {}}}), "tiny", top_k=1))


def test_a_queue_that_lets_nothing_pass_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnserve.tools.offline.worker._ATTEMPTS", 3)
    config = "max_batch_size: 8 dynamic_batching { default_queue_policy { default_timeout_microseconds: 1 } }"
    with configured(tmp_path, config) as worker, pytest.raises(DeadlineExceeded):
        worker.classify([picture("left")])


def test_a_model_that_takes_no_images_ends_the_run(tiny_repository: Path) -> None:
    plan = read({"repository": str(tiny_repository), "models": {"plain": {}}})
    with Worker(Task(plan, "plain")) as worker, pytest.raises(Unsupported, match="takes no images"):
        worker.classify([picture("left")])


def test_a_worker_gives_every_image_its_outcome_in_order(tiny_repository: Path) -> None:
    plan = read({"repository": str(tiny_repository), "models": {"tiny": {}}})
    images: list[bytes | str] = [picture("left"), b"bad", "cannot be read", *[picture("bright")] * 20]
    with Worker(Task(plan, "tiny", top_k=1)) as worker:
        outcomes = worker.classify(images)
        assert worker.version == 1
    assert [bool(outcome.classes) for outcome in outcomes] == [True, False, False, *[True] * 20]
    assert outcomes[0].classes[0].label == "left"
    assert {outcome.classes[0].label for outcome in outcomes[3:]} == {"bright"}
    assert outcomes[1].error
    assert outcomes[2].error == "cannot be read"


def test_an_unknown_model_is_named(tiny_repository: Path) -> None:
    with pytest.raises(ConfigError, match="'tinny' is not in the model repository"):
        read({"repository": str(tiny_repository), "models": {"tinny": {}}})


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with pytest.raises(InvalidInput, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused; correct --ray-address"):
        offline_cli._check_reachable("127.0.0.1:1")
    with pytest.raises(InvalidInput, match="no Ray cluster at ray://127"):
        offline_cli._check_reachable("ray://127.0.0.1:99999")
    for address in ("auto", "local"):
        offline_cli._check_reachable(address)


def test_without_ray_the_command_names_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--ray", "--repository", str(tmp_path), "--model", "m", "--output", str(tmp_path / "out"))
    assert cli.main(["classify", "x.png", *flags]) == 1
    assert 'pip install "cnnserve[cpu,ray]"' in capsys.readouterr().err
