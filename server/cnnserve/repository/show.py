"""`cnnserve show`: prints manifests of a model repository as text or JSON, and compares the files with their digests.

It needs only the base install: neither ONNX Runtime nor torch nor a running server.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cnnserve.config.spelling import Parser
from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository import normalisation, onnx_ending, onnx_files, onnx_precision, show_text
from cnnserve.repository.folders import ModelFolder, model_folder, named, scan, version_number
from cnnserve.repository.label_file import doubt, read_labels
from cnnserve.repository.manifest import MANIFEST_FILE, Manifest
from cnnserve.repository.show_text import Entry
from cnnserve.repository.version_files import VersionFiles


class _NothingToShow(Exception):
    """There is no version to show. The text gives the reason."""


def show(argv: Sequence[str]) -> int:
    """Runs `cnnserve show` and returns its exit status.

    The status is 1 if a file differs from its manifest, a manifest is broken, or there is nothing to show; 141 if the
    reader of the output has closed it; otherwise 0.
    """
    arguments = show_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Labels may have characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _show(arguments.path, arguments.version, as_json=arguments.json)
    except BrokenPipeError:
        # The interpreter flushes standard output again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (_NothingToShow, ModelLoadFailed, OSError) as error:
        print(f"error: {show_text.printable(str(error))}", file=sys.stderr)
        return 1


def _show(path: Path, version: int | None, *, as_json: bool) -> int:
    found, whole = _find(path, version)
    entries = [look(model, number) for model, number in found]
    if as_json:
        print(json.dumps({"versions": entries}, indent=2))
    else:
        print(show_text.table(entries) if whole else show_text.version(entries[0]))
    sys.stdout.flush()
    problems = [f"{entry['folder']}: {text}" for entry in entries for text in entry["problems"].values()]
    for problem in problems:
        print(f"error: {show_text.printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


def show_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve show`."""
    parser = Parser(
        prog="cnnserve show",
        description="Print the manifest of a version and compare the version's files with their digests.",
        epilog="Example: cnnserve show models/resnet50",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a version or a model, or a model repository")
    parser.add_argument(
        "--version",
        type=int,
        metavar="N",
        help="number of the version to show, if PATH is a model folder (default: the newest version)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document (default: text)")
    return parser


def _find(path: Path, version: int | None) -> tuple[list[tuple[ModelFolder, int]], bool]:
    """Returns the versions that `path` names, and whether `path` is a model repository.

    A version folder or a model folder gives one version, a model repository gives all its versions. Raises
    `_NothingToShow` if there are none.
    """
    if not path.is_dir():
        raise _NothingToShow(f"{path} {'is a file' if path.exists() else 'does not exist'}, expected a folder")
    folder = named(path)
    number = version_number(folder.name)
    if number and ((folder / MANIFEST_FILE).is_file() or any(folder.glob("*.onnx"))):
        if version not in (None, number):
            raise _NothingToShow(f"{path} is the folder of version {number}; use --version with a model folder only")
        return [(model_folder(folder.parent), number)], False
    model = model_folder(folder)
    if model.mounted:
        return [(model, _chosen(model, version))], False
    # The name of a model may be a number. Its folder then holds version folders, not the files of a version.
    if any(not model_folder(child).versions for child in model.versions.values()):
        return [(model, _chosen(model, version))], False
    models = [model for model in scan(folder) if model.versions]
    if not models:
        raise _NothingToShow(f"{path} holds no versions, expected a version, a model or a model repository")
    if version is not None:
        raise _NothingToShow(f"{path} is a model repository; use --version with a model folder only")
    return [(model, number) for model in models for number in model.versions], True


def _chosen(model: ModelFolder, version: int | None) -> int:
    if version is not None and version not in model.versions:
        there = ", ".join(map(str, model.versions))
        raise _NothingToShow(f"{model.path} has no version {version}; its versions are {there}")
    return max(model.versions) if version is None else version


def look(model: ModelFolder, version: int) -> Entry:
    """Returns what is shown of a version. The keys are documented and stable; `manifest` is `manifest.json` as read."""
    folder = model.versions[version]
    entry: Entry = {
        "model": model.name,
        "version": version,
        "folder": str(folder),
        "other_versions": [number for number in model.versions if number != version],
        "state": "no manifest",
        "problems": {},
        "warnings": [],
        "labels": None,
        "golden": None,
        "manifest": None,
    }
    try:
        with VersionFiles(model, version) as files:
            manifest = manifests.read_from(files)
            return entry if manifest is None else entry | _compared(manifest, files)
    except ModelLoadFailed as error:
        return entry | {"state": "broken manifest", "problems": {MANIFEST_FILE: str(error)}}


def _compared(manifest: Manifest, files: VersionFiles) -> Entry:
    """Returns the manifest of a version, and how its files and its folder differ from it."""
    problems = manifests.altered_files(manifest, files)
    labels = golden = None
    try:
        if manifest.labels and manifest.labels not in problems:
            labels = list(read_labels(manifest.labels, files.read))
    except ModelLoadFailed as error:
        problems[manifest.labels or ""] = str(error)
    try:
        if manifest.golden.probabilities not in problems:
            golden = _golden(manifest, files, labels)
    except ModelLoadFailed as error:
        problems[manifest.golden.probabilities or MANIFEST_FILE] = str(error)
    try:
        if manifest.onnx.file not in problems:
            onnx_files.check_references(files, manifest)
    except ModelLoadFailed as error:
        problems[manifest.onnx.file] = str(error)
    state = "altered" if problems else "intact"
    if wrong := _graph(manifest, files) if manifest.onnx.file not in problems else "":
        state, problems[MANIFEST_FILE] = "broken manifest", wrong
    try:
        manifests.check_own_place(manifest, files.folder, files.version)
    except ModelLoadFailed as error:
        state = "wrong place" if state == "intact" else state
        problems[MANIFEST_FILE] = str(error)
    return {
        "state": state,
        "problems": problems,
        "warnings": [text for text in _warnings(manifest, files, labels or ()) if text],
        "labels": labels,
        "golden": golden,
        "manifest": manifests.document(manifest),
    }


def _warnings(manifest: Manifest, files: VersionFiles, labels: Sequence[str]) -> Iterator[str]:
    yield doubt(labels)
    yield _normalisation(manifest, files)
    yield onnx_files.unnamed(files, manifest)


def _normalisation(manifest: Manifest, files: VersionFiles) -> str:
    try:
        with files.open(manifest.onnx.file) as file:
            return normalisation.contradiction_in(file, manifest.preprocessing, manifest.input)
    except (OSError, ModelLoadFailed):
        return ""


def _graph(manifest: Manifest, files: VersionFiles) -> str:
    with files.open(manifest.onnx.file) as file:
        return onnx_precision.contradiction(manifest.onnx.precision, file) or onnx_ending.contradiction(
            manifest.activation, file, manifest.output.name
        )


def _golden(manifest: Manifest, files: VersionFiles, labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """Returns for each golden image its most probable class, and the label and the probability of that class."""
    rows = manifests.golden_probabilities(manifest, files.read)
    return [
        {
            "image": image,
            "class": (number := int(row.argmax())),
            "label": labels[number] if labels and number < len(labels) else None,
            "probability": float(row[number]),
        }
        for image, row in zip(manifest.golden.images, rows, strict=True)
    ]
