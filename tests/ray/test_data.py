"""Offline on a Ray cluster: files and parquet in, parquet out, bad images as rows, a killed worker, a second start."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ray
from cnnserve import cli
from cnnserve.tools.offline.data import classify_dataset

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repo"
FOUR = (REPOSITORY / "lenet5/1/golden-four.png").read_bytes()
ZERO = (REPOSITORY / "lenet5/1/golden-zero.png").read_bytes()
FLAGS = ("--ray", "--ray-address", "local", "--repository", str(REPOSITORY), "--model", "lenet5")


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    yield
    ray.shutdown()


def images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:05}.png").write_bytes(ZERO if number % 2 else FOUR)
    return folder


def test_files_become_rows_and_a_bad_one_has_its_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = images(tmp_path / "in", 50), tmp_path / "out.parquet"
    (folder / "00007.png").write_bytes(b"no image")
    flags = ("classify", str(folder), *FLAGS, "--output", str(output), "--part-images", "20", "--top-k", "3")
    assert cli.main(flags) == 1
    rows = pq.read_table(output).sort_by("image").to_pylist()
    assert [row["label"] for row in rows[:4]] == ["4", "0", "4", "0"]
    assert [row["image"] for row in rows if row["error"]] == [str(folder / "00007.png")]
    assert {len(row["classes"]) for row in rows} == {0, 3}
    assert {row["version"] for row in rows} == {1}
    assert len(rows) == 50
    # All is done: the second start does nothing, needs no cluster, and has the same status.
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert cli.main(flags) == 1
    assert "50 images, 1 failed" in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    # Without one part, it makes this part only.
    (output / "part-000001.parquet").unlink()
    assert cli.main(flags) == 1
    assert "50 images, 1 failed" in capsys.readouterr().err
    assert len(pq.read_table(output)) == 50


def test_columns_of_encoded_images_keep_the_other_columns(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(40)), "image": [FOUR, ZERO, None, b"bad"] * 10})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=16)
    flags = ("classify", str(tmp_path / "in.parquet"), *FLAGS, "--output", str(tmp_path / "out"))
    assert cli.main(flags) == 1
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    assert [(row["label"], bool(row["error"])) for row in rows[:4]] == [
        ("4", False),
        ("0", False),
        (None, True),
        (None, True),
    ]
    assert [row["id"] for row in rows] == list(range(40))


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    folder, output = images(tmp_path / "in", 3000), tmp_path / "out"
    killed: list[int] = []

    def kill() -> None:
        ends = time.monotonic() + 100
        while not killed and time.monotonic() < ends:
            if len(list(output.glob("part-*.parquet"))) >= 2:
                for process in Path("/proc").glob("[0-9]*"):
                    if b"MapWorker" in _words(process):
                        os.kill(int(process.name), signal.SIGKILL)
                        killed.append(int(process.name))
                        break
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    flags = ("classify", str(folder), *FLAGS, "--output", str(output), "--part-images", "50", "--workers", "1")
    assert cli.main(flags) == 0
    killer.join()
    assert killed
    # What the killed worker had begun is gone.
    assert not list(output.glob(".*"))
    rows = pq.read_table(output).sort_by("image").to_pylist()
    assert [row["label"] for row in rows] == ["4", "0"] * 1500


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_dataset_gets_the_columns_of_results() -> None:
    ray.init(num_cpus=2, log_to_driver=False)
    dataset = ray.data.from_items([{"id": number, "image": FOUR if number % 2 else ZERO} for number in range(20)])
    found = classify_dataset(dataset, repository=str(REPOSITORY), model="lenet5", top_k=2).take_all()
    assert sorted((row["id"], row["label"]) for row in found) == [(i, "4" if i % 2 else "0") for i in range(20)]
    assert "image" not in found[0]
