"""`cnnserve verify`: says what a server with trusted keys would say of signatures, without loading a model."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cnnserve.config.settings import ConfigError
from cnnserve.config.spelling import Parser
from cnnserve.errors import ModelLoadFailed, ServingError, reason
from cnnserve.repository import folders
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import ModelFolder, version_number
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.repository.show_text import printable
from cnnserve.repository.signature import Signed, Trust
from cnnserve.repository.signed_tree import SignedTree
from cnnserve.repository.version_files import VersionFiles
from cnnserve.trust import keys


def verify(argv: Sequence[str]) -> int:
    """Runs `cnnserve verify` and returns its exit status: 0, or 1 if a signature is missing or not valid."""
    arguments = verify_parser().parse_args(argv)
    try:
        trust = keys.read(arguments.trusted_keys)
        for warning in trust.warnings:
            print(f"warning: {printable(warning)}", file=sys.stderr)
        absolute = arguments.path.is_absolute()
        failed = [not _report(folder, version, absolute=absolute) for folder, version in _find(arguments.path, trust)]
    except (ConfigError, ServingError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    return 1 if any(failed) else 0


def verify_parser() -> argparse.ArgumentParser:
    """Returns the parser of `cnnserve verify`."""
    parser = Parser(
        prog="cnnserve verify",
        description="Check that versions, and the files beside them, are signed by a trusted key and unaltered.",
        epilog="Example: cnnserve verify models --trusted-keys keys",
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of a version or a model, or model repository")
    parser.add_argument(
        "--trusted-keys",
        type=Path,
        metavar="PATH",
        required=True,
        help="folder of public keys and certificates in PEM, or one such file",
    )
    return parser


def _find(path: Path, trust: Trust) -> Iterator[tuple[ModelFolder, int]]:
    """Yields the models and versions that `path` names; 0: the files beside the versions. Raises `ModelLoadFailed`."""
    folder = folders.named(path)
    number = version_number(folder.name)
    if number and (folder / MANIFEST_FILE).exists():
        yield ModelFolder(folder.parent.name, folder.parent, {number: folder}, trust=trust), number
        return
    model = folders.model_folder(folder, trust=trust)
    models = [model] if model.versions else [found for found in folders.scan(folder, trust=trust) if found.versions]
    if not models:
        raise ModelLoadFailed(f"{path} holds no versions, expected a version, a model or a model repository")
    for found in models:
        if not found.mounted:
            yield found, 0
        yield from ((found, version) for version in found.versions)


def _report(folder: ModelFolder, version: int, *, absolute: bool) -> bool:
    """Prints what is signed, or why it is not, and returns whether it is. `absolute`: with absolute paths."""
    path = folder.versions[version] if version else folder.path
    where = str(path) if absolute else os.path.relpath(path)
    try:
        signed = _version(folder, version) if version else _beside(folder)
    except OSError as error:
        print(f"error: {printable(f'{where}: {reason(error)}')}", file=sys.stderr)
        return False
    except ModelLoadFailed as error:
        print(f"error: {printable(f'{where}: {error}')}", file=sys.stderr)
        return False
    count = len(signed.files)
    print(printable(f"{where}: {count} {'file' if count == 1 else 'files'} signed by {signed.signer}"))
    return True


def _version(folder: ModelFolder, version: int) -> Signed:
    with VersionFiles(folder, version) as files:
        manifest = manifests.read_from(files)
        if manifest is None:
            raise ModelLoadFailed(f"it has no {MANIFEST_FILE}; sign a version that cnnserve published")
        manifests.check_own_place(manifest, folder, version)
        manifests.check_contract(manifest)
        if altered := manifests.altered_files(manifest, files):
            raise ModelLoadFailed(next(iter(altered.values())))
        files.check_others()
        assert files.signed is not None
        return files.signed


def _beside(folder: ModelFolder) -> Signed:
    with folder.open() as tree:
        assert isinstance(tree, SignedTree)
        tree.check_others("")
        return tree.signed("")
