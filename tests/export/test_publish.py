import dataclasses
import os
import shutil
import stat
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from torch import nn

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.repository import manifest as manifests
from cnnserve.repository import staging
from cnnserve_export import pipeline, publish, verify
from cnnserve_export.errors import ExportError
from cnnserve_export.pipeline import Export
from cnnserve_export.progress import Progress

TinyExport = Callable[..., Export]

pytestmark = pytest.mark.usefixtures("converts_once")


def run(job: Export) -> Path:
    return pipeline.run(job, Progress(StringIO()))


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def published(repository: Path, tiny_export: TinyExport) -> Path:
    """A model repository with version 1 of `tiny`."""
    run(tiny_export(repository, labels=("a", "b", "c", "d")))
    return repository


def test_a_first_version_is_whole(published: Path) -> None:
    files = [path for path, data in snapshot(published).items() if data is not None]
    assert files == [
        "tiny/1/golden.bin",
        "tiny/1/golden.png",
        "tiny/1/labels.txt",
        "tiny/1/manifest.json",
        "tiny/1/model.onnx",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
    ]
    manifest = manifests.read(published / "tiny" / "1")
    assert manifest is not None
    manifests.verify_files(manifest, published / "tiny" / "1")
    assert manifest.files.keys() == {"golden.bin", "golden.png", "labels.txt", "model.onnx"}
    assert (manifest.model, manifest.version, manifest.class_count, manifest.labels) == ("tiny", 1, 4, "labels.txt")
    assert (published / "tiny/config.pbtxt").read_text().startswith('name: "tiny"\n')


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_others_may_read_and_not_write(mask: int, repository: Path, tiny_export: TinyExport) -> None:
    before = os.umask(mask)
    try:
        run(tiny_export(repository))
        run(tiny_export(repository))
    finally:
        os.umask(before)
    for path in (repository, *repository.rglob("*")):
        expected = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_next_version_adds_one_folder_and_nothing_else(published: Path, tiny_export: TinyExport) -> None:
    (published / "tiny/config.pbtxt").write_text('name: "tiny"\nmax_batch_size: 4\n')
    before = snapshot(published)
    assert run(tiny_export(published)) == published / "tiny" / "2"
    after = snapshot(published)
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[1] for path in after.keys() - before.keys()} == {"2"}


def test_a_version_may_be_chosen_and_is_never_replaced(published: Path, tiny_export: TinyExport) -> None:
    run(tiny_export(published, version=7))
    before = snapshot(published)
    with pytest.raises(ExportError, match="tiny/7 exists, and a published version never changes"):
        run(tiny_export(published, version=7))
    assert snapshot(published) == before
    assert run(tiny_export(published)).name == "8"


@pytest.mark.parametrize(
    "change", [{"class_count": 5}, {"input_form": "float32"}], ids=["another class count", "another input"]
)
def test_a_version_that_breaks_the_contract_is_refused(
    change: dict[str, object], published: Path, tiny_export: TinyExport
) -> None:
    before = snapshot(published)
    with pytest.raises(ExportError, match=r"version 1 of tiny has the input 'image' UINT8 \[8, 8, 3\] and 4 classes"):
        run(tiny_export(published, **change))
    assert snapshot(published) == before


def test_a_config_that_allows_larger_batches_than_proved_is_named(published: Path, tiny_export: TinyExport) -> None:
    with pytest.raises(ExportError, match=r"config\.pbtxt allows batches of 8, .* up to 4; pass --max-batch-size 8"):
        run(tiny_export(published, max_batch_size=4))
    (published / "tiny/config.pbtxt").write_text("max_batch_size: 2048")
    with pytest.raises(ExportError, match=r"allows batches of 2048, but .* up to 4; set max_batch_size to 4 there"):
        run(tiny_export(published, max_batch_size=4))


@pytest.mark.parametrize(
    ("module", "step", "first"),
    [
        (publish, "_write_manifest", True),
        (publish, "_write_manifest", False),
        (publish, "_write_config", True),
        (publish, "_rename", True),
        (publish, "_rename", False),
        (staging, "sync", True),
        (staging, "sync", False),
    ],
)
def test_a_failure_on_the_way_leaves_nothing(
    module: ModuleType,
    step: str,
    first: bool,
    repository: Path,
    tiny_export: TinyExport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not first:
        run(tiny_export(repository))
    before = snapshot(repository.parent)

    def disk_full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, step, disk_full)
    with pytest.raises(ExportError, match="models cannot be written: No space left on device; free space"):
        run(tiny_export(repository))
    assert snapshot(repository.parent) == before


def test_a_config_that_no_server_reads_is_not_published(
    repository: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pbtxt, "render", lambda _: 'input { name: "other" }')
    with pytest.raises(ModelLoadFailed, match='input is "other", the ONNX file has "image"'):
        run(tiny_export(repository))
    assert snapshot(repository.parent) == {}


@pytest.mark.parametrize("form", ["uint8", "float32"])
def test_a_network_that_changes_its_input_in_place(form: str, repository: Path, tiny_export: TinyExport) -> None:
    network = nn.Sequential(nn.LeakyReLU(inplace=True), tiny_export(repository).network)
    assert run(tiny_export(repository, network=network, input_form=form)).name == "1"


def test_a_mismatch_leaves_nothing(repository: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="differs from PyTorch"):
        run(tiny_export(repository))
    assert snapshot(repository.parent) == {}


def test_an_interruption_leaves_nothing(
    repository: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_export(repository))
    assert snapshot(repository.parent) == {}


def test_nothing_is_visible_before_the_rename(
    repository: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    rename = publish._rename

    def watched(source: Path, destination: Path, target: publish.Target) -> None:
        seen.append([path.name for path in repository.iterdir()])
        rename(source, destination, target)

    monkeypatch.setattr(publish, "_rename", watched)
    run(tiny_export(repository))
    assert len(seen) == 1
    assert all(name.startswith(".publish-") for name in seen[0])


def test_a_folder_made_meanwhile_by_someone_else_is_kept(
    repository: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes the folder just before the rename, without the lock."""
    rename = publish._rename

    def overtaken(source: Path, destination: Path, target: publish.Target) -> None:
        (repository / "tiny").mkdir()
        (repository / "tiny" / "mine").touch()
        rename(source, destination, target)

    monkeypatch.setattr(publish, "_rename", overtaken)
    with pytest.raises(ExportError, match="somebody else published tiny meanwhile"):
        run(tiny_export(repository))
    assert snapshot(repository) == {"tiny": None, "tiny/mine": b""}


def test_a_version_published_meanwhile_is_followed(
    published: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = publish.flush

    def overtaken(root: Path) -> None:
        flush(root)
        monkeypatch.setattr(publish, "flush", flush)
        run(tiny_export(published, version=6))

    monkeypatch.setattr(publish, "flush", overtaken)
    assert run(tiny_export(published)).name == "7"
    manifest = manifests.read(published / "tiny" / "7")
    assert manifest is not None
    assert manifest.version == 7


def test_a_contradicting_version_published_meanwhile_is_kept(
    published: Path, tiny_export: TinyExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two exports run at once, so the check before the work cannot see the version of the other export yet."""
    flush = publish.flush

    def overtaken(root: Path) -> None:
        flush(root)
        monkeypatch.setattr(publish, "flush", flush)
        (published / "tiny" / "config.pbtxt").unlink()
        shutil.rmtree(published / "tiny" / "1")
        run(tiny_export(published, input_form="float32", version=2))

    monkeypatch.setattr(publish, "flush", overtaken)
    with pytest.raises(ExportError, match=r"version 2 of tiny has .* FP32 .*, this version has .* UINT8"):
        run(tiny_export(published, version=3))
    assert [path.name for path in (published / "tiny").iterdir() if path.is_dir()] == ["2"]


def test_a_version_no_server_reads_is_refused(repository: Path) -> None:
    with pytest.raises(ExportError, match="is too large; pass a --version of at most"):
        publish.plan(repository, "tiny", 10**18)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "é", "a" * 129, "-x", "x\n"])
def test_names_that_are_no_model_names(name: str, repository: Path) -> None:
    with pytest.raises(ExportError, match="is not a model name; choose one with at most 128 letters"):
        publish.plan(repository, name)
    assert not repository.exists()


@pytest.mark.parametrize("name", ["a", "resnet50", "ResNet-50_v1.5", "7", "a" * 128])
def test_names_that_are_model_names(name: str, repository: Path) -> None:
    assert publish.plan(repository, name).folder == repository / name / "1"


def test_foreign_entries_are_no_versions(repository: Path) -> None:
    for name in ("3", "old", ".tmp", "²"):
        (repository / "m" / name).mkdir(parents=True)
    assert publish.plan(repository, "m").version == 4


def test_a_broken_earlier_version_binds_no_one(published: Path, tiny_export: TinyExport) -> None:
    (published / "tiny/1/manifest.json").write_text("{")
    job = dataclasses.replace(tiny_export(published), labels=("w", "x", "y", "z"))
    assert run(job).name == "2"
