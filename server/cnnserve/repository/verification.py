"""Checks the files of a version, and those beside it, without loading a model: digests, place and signatures."""

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import manifest as manifests
from cnnserve.repository.folders import ModelFolder
from cnnserve.repository.manifest import MANIFEST_FILE
from cnnserve.repository.signature import Signed
from cnnserve.repository.signed_tree import SignedTree
from cnnserve.repository.version_files import VersionFiles


def check_version(folder: ModelFolder, version: int) -> Signed | None:
    """Returns what was signed in a version's folder; None: there are no trusted keys.

    Raises `ModelLoadFailed` if it has no manifest, is in another place than that says, if a file differs from its
    digest, or, with trusted keys, from what one of them has signed.
    """
    with VersionFiles(folder, version) as files:
        manifest = manifests.read_from(files)
        if manifest is None:
            raise ModelLoadFailed(f"it has no {MANIFEST_FILE}; take a version that cnnserve published")
        manifests.check_own_place(manifest, folder, version)
        if files.signed is not None:
            manifests.check_contract(manifest)
        if altered := manifests.altered_files(manifest, files):
            raise ModelLoadFailed(next(iter(altered.values())))
        files.check_others()
        return files.signed


def check_beside(folder: ModelFolder) -> Signed | None:
    """Returns what was signed beside the versions of a model; None: there are no trusted keys.

    Raises `ModelLoadFailed` if there are trusted keys and no valid signature, and `OSError`.
    """
    with folder.open() as tree:
        if not isinstance(tree, SignedTree):
            return None
        tree.check_others("")
        return tree.signed("")
