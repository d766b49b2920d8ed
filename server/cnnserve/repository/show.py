"""`cnnserve show`: what a repository's manifests say, for a person or a program, with the digests compared.

Needs nothing that is not in the base install: no runtime, no torch, no running server.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository import show_text
from cnnserve.repository.folders import ModelFolder, model_folder, scan, version_number
from cnnserve.repository.label_file import read_labels
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.repository.show_text import Entry


class _NothingToShow(Exception):
    """There is no version; the text says why."""


def show(argv: Sequence[str]) -> int:
    """Runs `cnnserve show`. Returns 0; 1 where a file is not what its manifest says, or nothing is there to show.

    141 where the reader of the output went away.
    """
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Labels may have letters that the terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _show(arguments.path, arguments.version, as_json=arguments.json)
    except BrokenPipeError:
        # The interpreter flushes once more on its way out and must not fail there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (_NothingToShow, ModelLoadFailed, OSError) as error:
        print(f"error: {show_text.printable(str(error))}", file=sys.stderr)
        return 1


def _show(path: Path, version: int | None, *, as_json: bool) -> int:
    found, whole = _find(path, version)
    entries = [_look(model, number) for model, number in found]
    if as_json:
        print(json.dumps({"versions": entries}, indent=2))
    else:
        print(show_text.table(entries) if whole else show_text.version(entries[0]))
    sys.stdout.flush()
    problems = [f"{entry['folder']}: {text}" for entry in entries for text in entry["problems"].values()]
    for problem in problems:
        print(f"error: {show_text.printable(problem)}", file=sys.stderr)
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cnnserve show",
        description="Shows what a model's manifest says and compares every file with its digest.",
        epilog="Example: cnnserve show models/resnet50",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a version's folder, a model's, or a whole repository")
    parser.add_argument("--version", type=int, metavar="N", help="of a model's folder (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def _find(path: Path, version: int | None) -> tuple[list[tuple[ModelFolder, int]], bool]:
    """The versions asked for: one of a version's or a model's folder, all of a repository; whether it is one."""
    if not path.is_dir():
        raise _NothingToShow(f"{path} is {'a file' if path.exists() else 'not there'}, expected a folder")
    # Names matter here, so a link keeps its own, but ".." is none.
    folder = path.resolve() if ".." in path.parts else path.absolute()
    number = version_number(folder.name)
    if number and ((folder / MANIFEST_FILE).is_file() or any(folder.glob("*.onnx"))):
        if version not in (None, number):
            raise _NothingToShow(f"{path} is the folder of version {number}; --version is for a model's folder")
        return [(model_folder(folder.parent), number)], False
    model = model_folder(folder)
    # A model may have a number for its name; its folder then holds versions, not a version's files.
    if any(not model_folder(child).versions for child in model.versions.values()):
        return [(model, _chosen(model, version))], False
    models = [model for model in scan(folder) if model.versions]
    if not models:
        raise _NothingToShow(f"{path} holds no versions, neither of one model nor of several")
    if version is not None:
        raise _NothingToShow(f"{path} is a whole repository; --version is for a model's folder")
    return [(model, number) for model in models for number in model.versions], True


def _chosen(model: ModelFolder, version: int | None) -> int:
    if version is not None and version not in model.versions:
        there = ", ".join(map(str, model.versions))
        raise _NothingToShow(f"{model.path} has no version {version}; it has {there}")
    return max(model.versions) if version is None else version


def _look(model: ModelFolder, version: int) -> Entry:
    """What is shown of a version; the keys are documented and stable, `manifest` is `manifest.json` as it was read."""
    folder = model.versions[version]
    entry: Entry = {
        "model": model.name,
        "version": version,
        "folder": str(folder),
        "other_versions": [number for number in model.versions if number != version],
        "state": "no manifest",
        "problems": {},
        "labels": None,
        "manifest": None,
    }
    try:
        manifest = manifests.read(folder)
    except ModelLoadFailed as error:
        return entry | {"state": "broken manifest", "problems": {MANIFEST_FILE: str(error)}}
    if manifest is None:
        return entry
    problems = manifests.altered_files(manifest, folder)
    if manifest.labels and manifest.labels not in problems:
        try:
            entry["labels"] = list(read_labels(folder / manifest.labels))
        except ModelLoadFailed as error:
            problems[manifest.labels] = str(error)
    return entry | {"state": "altered" if problems else "intact", "problems": problems, "manifest": asdict(manifest)}
