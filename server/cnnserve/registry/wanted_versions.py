"""Reads from a model's folder which versions are to be served and which labels they have. Blocks."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from cnnserve.errors import ModelLoadFailed
from cnnserve.model_config import pbtxt
from cnnserve.registry import version_labels
from cnnserve.registry.lifecycle import VersionLabels
from cnnserve.repository import folders, layout
from cnnserve.repository.folders import Fingerprint, ModelFolder
from cnnserve.repository.signature import Trust


@dataclass(frozen=True)
class Plan:
    """The versions of a model that are to be served.

    `chosen`: versions that the version policy chose, and those that a version label names, ascending, with the
    fingerprints of their files. `reason` says why there are none.
    """

    folder: ModelFolder
    labels: VersionLabels
    chosen: dict[int, Fingerprint]
    reason: str = ""


def read(
    root: folders.Models,
    name: str,
    labels: VersionLabels,
    available: Collection[int] | None = None,
    *,
    config: str = "",
    config_name: str = "",
    trust: Trust | None = None,
) -> Plan:
    """Returns the plan for one model, for its `available` versions or for all of them. Raises `ModelNotFound`.

    `labels` were read before; `config` is JSON that replaces the config file that `config_name` chooses. `trust` has
    the keys that must have signed the model's files.
    """
    folder = folders.find(root, name, config_name, trust)
    folder = replace(folder, config=config or folder.config)
    if folder.unreadable:
        return Plan(folder, labels, {}, f"its folder cannot be read: {folder.unreadable}")
    present = [version for version in folder.versions if available is None or version in available]
    chosen, reason = _choose(folder, present)
    labels = version_labels.read_labels(folder, labels)
    # A label says that clients ask for this version.
    chosen = sorted({*chosen, *(version for version in labels.versions.values() if version in present)})
    reason = "" if chosen else reason
    # Taken before the files are read, so that a change during the load shows as a difference the next time.
    files = {version: folders.fingerprint(folder, version) for version in chosen}
    return Plan(folder, labels, files, reason)


def _choose(folder: ModelFolder, present: list[int]) -> tuple[list[int], str]:
    if not folder.versions:
        return [], layout.without_versions(folder)
    if not present:
        return [], f"version {max(folder.versions)} is not complete yet"
    try:
        policy = pbtxt.version_policy(pbtxt.of(folder))
    except ModelLoadFailed:
        # The config concerns all versions, so it is enough that the newest one fails with this reason when it loads.
        return present[-1:], ""
    chosen = policy.choose(present)
    known = ", ".join(map(str, present))
    return chosen, "" if chosen else f"its version_policy names none of the versions {known}; change version_policy"
