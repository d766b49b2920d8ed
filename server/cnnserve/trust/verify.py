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
from cnnserve.repository.folders import ModelFolder, version_number
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.repository.show_text import printable
from cnnserve.repository.signature import Trust
from cnnserve.repository.verification import check_beside, check_version
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
        signed = check_version(folder, version) if version else check_beside(folder)
    except OSError as error:
        print(f"error: {printable(f'{where}: {reason(error)}')}", file=sys.stderr)
        return False
    except ModelLoadFailed as error:
        print(f"error: {printable(f'{where}: {error}')}", file=sys.stderr)
        return False
    assert signed is not None
    count = len(signed.files)
    print(printable(f"{where}: {count} {'file' if count == 1 else 'files'} signed by {signed.signer}"))
    return True
