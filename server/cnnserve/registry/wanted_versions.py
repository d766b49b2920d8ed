"""What a model's folder asks for: which versions its policy wants served, and which words stand for them. Blocks."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.registry import version_labels
from cnnserve.registry.lifecycle import VersionLabels
from cnnserve.repository import folders
from cnnserve.repository.folders import Fingerprint, ModelFolder


@dataclass(frozen=True)
class Plan:
    """`chosen`: the policy's version_labels, ascending, as their files are now; `reason` says why there are none."""

    folder: ModelFolder
    labels: VersionLabels
    chosen: dict[int, Fingerprint]
    reason: str = ""


def read(
    root: Path,
    name: str,
    labels: VersionLabels,
    available: Collection[int] | None = None,
    *,
    config: str = "",
    config_name: str = "",
) -> Plan:
    """The plan for one model, of its `available` versions or of all. Raises `ModelNotFound`.

    `labels` are those read before; `config` is JSON that takes the place of the config that `config_name` chooses.
    """
    folder = replace(folders.find(root, name, config_name), config=config)
    present = [version for version in folder.versions if available is None or version in available]
    chosen, reason = _choose(folder, present)
    # Taken before the files are read: what changes while they are shows as a difference the next time.
    files = {version: folders.fingerprint(folder, version) for version in chosen}
    return Plan(folder, version_labels.read_labels(folder.path, labels), files, reason)


def _choose(folder: ModelFolder, present: list[int]) -> tuple[list[int], str]:
    if not folder.versions:
        return [], "its folder holds no version folder (1, 2, 3, ...)"
    if not present:
        return [], f"version {max(folder.versions)} is not complete yet"
    try:
        policy = pbtxt.version_policy(pbtxt.of(folder))
    except ModelLoadFailed:
        # The newest version fails with this reason when it loads, and stands for all.
        return present[-1:], ""
    chosen = policy.choose(present)
    return chosen, "" if chosen else f"its version_policy names none of the versions {', '.join(map(str, present))}"
