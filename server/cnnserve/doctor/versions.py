"""Checks the model repository: every version with its problem and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cnnserve.config.settings import BUILD_TIMEOUT_S, DEFAULT_ENGINE_CACHE, LOAD_TIMEOUT_S, Address
from cnnserve.doctor import child
from cnnserve.doctor.child import ChildFailed, Event
from cnnserve.doctor.findings import Context, Finding, Status, parted
from cnnserve.errors import ServingError
from cnnserve.model_config import pbtxt
from cnnserve.model_config.parameters import ALLOW_UNVERIFIED
from cnnserve.process.cpu import cpu_budget
from cnnserve.registry import version_labels, wanted_versions
from cnnserve.registry.lifecycle import VersionLabels
from cnnserve.repository import folders, show
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import LABELS_FILE, ModelFolder, Models
from cnnserve.repository.show_text import Entry

_AGAIN = "copy the version again from where it was published, or export it again"
_NO_MANIFEST = "export or import the model with cnnserve, so that the server can verify it"
# The import of ONNX Runtime from a cold disk comes before the first load.
_IMPORT_S = 120.0


@dataclass(frozen=True)
class _Version:
    """A version of the repository. `chosen`: whether the version policy serves it."""

    folder: ModelFolder
    number: int
    chosen: bool

    @property
    def title(self) -> str:
        return f"{self.folder.name} version {self.number}"

    def finding(self, status: Status, text: str, fix: str = "", **data: Any) -> Finding:
        """Returns a finding about this version."""
        place = {"model": self.folder.name, "version": self.number, "served": self.chosen}
        return Finding(self.title, status, text, fix, {**place, **data})


def check(context: Context) -> Iterator[Finding]:
    """Yields a finding for each version, and for folders that hold none."""
    root = context.models
    if root is None and isinstance(address := context.settings.get("repository"), Address):
        text = f"not checked, because {address} is pulled when the server starts"
        yield Finding("repository", Status.NOTE, text, "pull it into a folder and check that: cnnserve pull")
        return
    if root is None:
        yield Finding("repository", Status.NOTE, "not checked, because no setting names it", "add --repository DIR")
        return
    try:
        names = [folder.name for folder in folders.scan(root)]
    except ServingError as error:
        fix = "set --repository to a folder that this user may read"
        yield Finding("repository", Status.PROBLEM, str(error), fix)
        return
    for name in folders.misnamed(root):
        text = "is ignored: a model name has letters, digits, '.', '_' and '-' and begins with a letter or a digit"
        yield Finding(f"folder {name}", Status.WARNING, text, "rename the folder")
    if not names:
        yield Finding(
            "repository", Status.WARNING, f"{root} holds no models", "export a model into it: cnnserve export"
        )
    config_name = str(context.settings.get("model_config_name", ""))
    found: list[_Version] = []
    for name in names:
        versions, problems = _read(root, name, config_name)
        found += versions
        yield from problems
    yield from _check_all(context, found)


def served_bytes(context: Context) -> list[int]:
    """Returns the size of the files of each version that would be served, in bytes."""
    root, config_name = context.models, str(context.settings.get("model_config_name", ""))
    if root is None:
        return []
    try:
        names = [folder.name for folder in folders.scan(root)]
    except ServingError:
        return []
    versions = [version for name in names for version in _read(root, name, config_name)[0] if version.chosen]
    stats = (folders.fingerprint(version.folder, version.number).own for version in versions)
    return [sum(size for _, _, size, _ in own) for own in stats]


def _read(root: Models, name: str, config_name: str) -> tuple[list[_Version], list[Finding]]:
    """Returns the versions of a model, and what is wrong with the model as a whole."""
    problems = []
    try:
        plan = wanted_versions.read(root, name, VersionLabels(), config_name=config_name)
    except ServingError as error:
        return [], [Finding(name, Status.PROBLEM, *parted(str(error)))]
    if plan.reason:
        problems.append(Finding(name, Status.PROBLEM, *parted(f"is not served: {plan.reason}")))
    try:
        labels = version_labels.parse_labels((plan.folder.path / LABELS_FILE).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        labels = {}
    except (OSError, ValueError) as error:
        labels = {}
        problems.append(Finding(name, Status.WARNING, f"{LABELS_FILE} is ignored: {error}", f"correct {LABELS_FILE}"))
    for label, number in labels.items():
        if number not in plan.chosen:
            text = f"{LABELS_FILE}: label {label} stands for version {number}, which is not served"
            problems.append(Finding(name, Status.WARNING, text, f"correct {LABELS_FILE}, or serve the version"))
    versions = [_Version(plan.folder, number, number in plan.chosen) for number in plan.folder.versions]
    return versions, problems


def _check_all(context: Context, found: Sequence[_Version]) -> Iterator[Finding]:
    files = {version.title: _files(version, bool(context.settings.get("require_manifest"))) for version in found}
    sound = [version for version in found if version.chosen and files[version.title].status is not Status.PROBLEM]
    loads = _load(context, sound) if context.load else {}
    for version in found:
        yield _both(files[version.title], loads.get(version.title))


def _both(files: Finding, load: Finding | None) -> Finding:
    """Returns one finding for a version: what is wrong with its files, or how its load went, or both."""
    if load is None or load.status is not Status.OK:
        return load or files
    if files.fix:
        return replace(load, status=files.status, text=f"{load.text}; {files.text}", fix=files.fix)
    return load


def _files(version: _Version, require_manifest: bool) -> Finding:
    """Compares the files of a version with its manifest."""
    try:
        entry = show.look(version.folder, version.number)
    except OSError as error:
        return version.finding(Status.PROBLEM, f"cannot be read: {error}", "let this user read its files")
    status, text, fix = _judged(version, entry, require_manifest)
    if not version.chosen:
        # It does no harm, because nobody asks it.
        status = Status.WARNING if status is Status.PROBLEM else status
        text += ", not served (version_policy)"
    return version.finding(status, text, fix)


def _judged(version: _Version, entry: Entry, require_manifest: bool) -> tuple[Status, str, str]:
    if entry["problems"]:
        parts = [parted(problem) for problem in entry["problems"].values()]
        text = f"{entry['state']}: {'; '.join(problem for problem, _ in parts)}"
        return Status.PROBLEM, text, next((fix for _, fix in parts if fix), _AGAIN)
    if entry["manifest"] is None:
        return _unverified(version, require_manifest)
    if entry["warnings"]:
        return Status.WARNING, "; ".join(entry["warnings"]), "publish a corrected version"
    if entry["manifest"]["schema"] == 1:
        fix = f"cnnserve upgrade {version.folder.versions[version.number]}"
        return Status.NOTE, "files match the digests; contract 1 proves less", fix
    return Status.OK, "files match the digests in the manifest", ""


def _unverified(version: _Version, require_manifest: bool) -> tuple[Status, str, str]:
    if require_manifest:
        return Status.PROBLEM, "no manifest, which require_manifest demands", _NO_MANIFEST
    if _follows_verified(version.folder):
        text = "no manifest, but the model has a version with one, so the server refuses it"
        return Status.PROBLEM, text, f"{_NO_MANIFEST}; or set {ALLOW_UNVERIFIED} in the model's config file"
    return Status.NOTE, "no manifest, so it is unverified", _NO_MANIFEST


def _follows_verified(folder: ModelFolder) -> bool:
    if not manifests.any_manifest(folder):
        return False
    try:
        with folder.open() as tree:
            return not pbtxt.allows_unverified(folder, tree)
    except (OSError, ServingError):
        return True


def _load(context: Context, versions: Sequence[_Version]) -> Mapping[str, Finding]:
    """Loads versions in processes of their own, and returns what was found, by title.

    If a process ends early, the version that it was loading is at fault, and a new process goes on with the next.
    """
    found: dict[str, Finding] = {}
    rest = list(versions)
    while rest:
        number = -1
        try:
            for event in child.run("load", _arguments(context, rest), lambda event: _limit_s(context, event)):
                number = event["version"]
                if finding := _loaded(rest[number], event):
                    found[rest[number].title] = finding
            return found
        except ChildFailed as error:
            if number < 0:
                # Without ONNX Runtime nothing can be loaded. Its own finding says why.
                return found
            text = f"the process that loaded it failed: {error}"
            found[rest[number].title] = rest[number].finding(
                Status.PROBLEM, text, "run cnnserve serve with this model alone"
            )
            rest = rest[number + 1 :]
    return found


def _loaded(version: _Version, event: Event) -> Finding | None:
    if "failure" in event:
        problem, fix = parted(event["failure"], "export or import the model again")
        return version.finding(Status.PROBLEM, f"does not load: {problem}", fix)
    if "text" in event:
        return version.finding(Status.OK, event["text"], placement=event["placement"])
    return None


def _limit_s(context: Context, event: Event | None) -> float:
    limit = float(context.settings.get("load_timeout_s", LOAD_TIMEOUT_S))
    if event is None:
        return _IMPORT_S
    if event.get("stage", "").startswith("building"):
        return float(context.settings.get("build_timeout_s", BUILD_TIMEOUT_S))
    return limit


def _arguments(context: Context, versions: Sequence[_Version]) -> dict[str, Any]:
    settings = context.settings
    return {
        "repository": str(settings.get("repository", "")),
        "models": list(settings.get("model", ())),
        "versions": [(version.folder.name, version.number) for version in versions],
        "config_name": settings.get("model_config_name", ""),
        "trusted_keys": None if settings.get("trusted_keys") is None else str(settings["trusted_keys"]),
        "options": {
            "cpu_threads": settings.get("cpu_threads") or cpu_budget(),
            "device": settings.get("device", "cpu"),
            "engine_cache": str(settings.get("engine_cache", DEFAULT_ENGINE_CACHE)),
            "load_timeout_s": settings.get("load_timeout_s", LOAD_TIMEOUT_S),
            "build_timeout_s": settings.get("build_timeout_s", BUILD_TIMEOUT_S),
        },
    }
