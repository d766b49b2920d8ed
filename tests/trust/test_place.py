"""Kind: a version in the wrong place, under another model's name or another number."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cnnserve.errors import ModelLoadFailed, ModelNotReady
from cnnserve.registry.lifecycle import State
from cnnserve.registry.poller import Poller
from cnnserve.registry.registry import Registry
from cnnserve.repository.show import show
from spoiling import lenet5
from support import write_version


def other_model(root: Path) -> None:
    write_version(root / "digit" / "1")
    shutil.copytree(root / "digit" / "1", root / "lenet5" / "2")


def old_version(root: Path) -> None:
    shutil.copytree(root / "lenet5" / "1", root / "lenet5" / "2")


def renamed_version(root: Path) -> None:
    (root / "lenet5" / "1").rename(root / "lenet5" / "2")


def linked_version(root: Path) -> None:
    (root / "lenet5" / "2").symlink_to("1")


def renamed_model(root: Path) -> None:
    (root / "lenet5").rename(root / "birds")
    (root / "birds" / "1").rename(root / "birds" / "2")
    (root / "birds" / "config.pbtxt").unlink()


# What was changed, in which model version 2 is wrong, and what is said of it.
ROWS: list[tuple[str, Callable[[Path], None], str, str]] = [
    (
        "another model's version as the next one",
        other_model,
        "lenet5",
        "model digit version 1, but .* model lenet5 version 2",
    ),
    ("an old version as the next one", old_version, "lenet5", "model lenet5 version 1, but .* model lenet5 version 2"),
    (
        "a version with another number",
        renamed_version,
        "lenet5",
        "model lenet5 version 1, but .* model lenet5 version 2",
    ),
    ("a link to an old version", linked_version, "lenet5", "model lenet5 version 1, but .* model lenet5 version 2"),
    ("a model with another name", renamed_model, "birds", "model lenet5 version 1, but .* model birds version 2"),
]
FIX = "; move the folder back, or publish a copy: cnnserve copy PATH TO"


@pytest.mark.parametrize(("what", "change", "model", "said"), ROWS, ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("schema", [1, 2])
async def test_it_is_served_in_no_way(
    tmp_path: Path,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
    what: str,
    change: Callable[[Path], None],
    model: str,
    said: str,
    schema: int,
) -> None:
    lenet5(tmp_path, schema=schema)
    change(tmp_path)
    pattern = f"manifest.json is that of {said}{FIX}"
    # At start.
    await registry.load_all()
    assert registry.entry(model).versions[2].state is State.UNAVAILABLE
    with pytest.raises(ModelNotReady, match=pattern):
        registry.get(model, "2")
    # By a call.
    with pytest.raises(ModelLoadFailed, match=pattern):
        await registry.load(model)
    # By polling.
    poller = Poller(registry, tmp_path, 1.0)
    for _ in range(4):
        await poller.poll()
        await poller.settle()
    assert re.search(pattern, registry.entry(model).versions[2].reason)
    assert str(tmp_path) not in registry.entry(model).versions[2].reason
    # By the command.
    assert show([str(tmp_path / model), "--version", "2"]) == 1
    assert re.search(f"state +wrong place: {pattern}", capsys.readouterr().out)


async def test_the_right_version_goes_on(tmp_path: Path, registry: Registry) -> None:
    lenet5(tmp_path)
    await registry.load_all()
    old_version(tmp_path)
    with pytest.raises(ModelLoadFailed, match="is that of model lenet5 version 1"):
        await registry.load("lenet5")
    assert registry.get("lenet5").info.version == 1


async def test_a_link_to_a_model_is_another_model(tmp_path: Path, registry: Registry) -> None:
    lenet5(tmp_path)
    (tmp_path / "birds").symlink_to("lenet5")
    (tmp_path / "lenet5" / "config.pbtxt").unlink()
    await registry.load_all()
    assert registry.get("lenet5").info.version == 1
    with pytest.raises(ModelNotReady, match="is that of model lenet5 version 1, but the folder is that of model birds"):
        registry.get("birds")
