"""The files of a model's folder, of which only those can be used that a trusted key has signed."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.signature import SIGN_AGAIN, SIGNATURE_FILE, Signed, Trust, check_digest
from cnnserve.repository.tree import LARGEST_READ, Tree


class SignedTree(Tree):
    """A `Tree` that reads only signed files. What `open` returns is not compared: give its digest to `check`.

    Every version folder has its own signature, and the files beside the version folders have one in `root`. `name` is
    the name of the model, which this signature must state; None: `root` is itself the folder of a version, whose
    manifest names the model. What was signed in `root` is compared at once: nothing would read a config.pbtxt that was
    removed, so nothing else would find that. The constructor also raises `ModelLoadFailed`.
    """

    def __init__(self, root: Path, trust: Trust, name: str | None = None, versions: Collection[str] = ()) -> None:
        super().__init__(root)
        self._trust = trust
        self._versions = versions
        self._signed: dict[str, Signed] = {}
        self._checked: set[str] = set()
        try:
            signed = self.signed("")
            if name is not None and signed.name != name:
                raise ModelLoadFailed(
                    f"{SIGNATURE_FILE} in the model's folder is that of {signed.name!r}, but the model is {name}; "
                    f"{SIGN_AGAIN}"
                )
            if name is not None:
                self.check_others("")
        except BaseException:
            self.close()
            raise

    def read(self, path: str, limit: int = LARGEST_READ) -> bytes:
        """Returns the content of a signed file of at most `limit` bytes.

        Raises `ModelLoadFailed` also if the content is not what was signed.
        """
        data = super().read(path, limit)
        self.check(path, hashlib.sha256(data).hexdigest())
        return data

    def signed(self, version: str) -> Signed:
        """Returns what was signed in a version folder, or beside the version folders ("").

        Raises `ModelLoadFailed` if there is no valid signature of a trusted key, if a file is missing, or if there is
        another one.
        """
        if version not in self._signed:
            where = f"version {version}" if version else "the model's folder"
            try:
                bundle = super().read(_join(version, SIGNATURE_FILE))
            except FileNotFoundError:
                raise ModelLoadFailed(
                    f"{where} has no {SIGNATURE_FILE}, which --trusted-keys demands; sign it with cnnserve sign PATH "
                    "--key KEY"
                ) from None
            signed = self._trust.verify(bundle)
            for name in signed.files:
                if not self.has(_join(version, name)):
                    raise ModelLoadFailed(
                        f"{SIGNATURE_FILE} names the file {name}, which is missing: it was removed after signing, or "
                        f"the signature belongs to another folder; put the file back, or {SIGN_AGAIN}"
                    )
            self._refuse_added(version, signed)
            self._signed[version] = signed
        return self._signed[version]

    def check(self, path: str, sha256: str) -> None:
        """Raises `ModelLoadFailed` unless a file was signed with this SHA-256 (hexadecimal digits)."""
        version, _, name = path.partition("/")
        if version not in self._versions:
            version, name = "", path
        check_digest(self.signed(version), name, sha256)
        self._checked.add(path)

    def check_others(self, version: str) -> None:
        """Does the same for all signed files of a version folder, or beside them (""), that nobody has checked yet."""
        for path in (_join(version, name) for name in self.signed(version).files):
            if path not in self._checked:
                with self.open(path) as file:
                    self.check(path, hashlib.file_digest(file, "sha256").hexdigest())

    def _refuse_added(self, version: str, signed: Signed) -> None:
        known = {name.partition("/")[0] for name in signed.files} | {SIGNATURE_FILE}
        # Nothing reads hidden files, and volumes of Kubernetes have some. Version folders have signatures of their own.
        names = [name for name in self.names(version) if not name.startswith(".") and (version or not name.isdecimal())]
        if added := [name for name in names if name not in known]:
            raise ModelLoadFailed(
                f"{SIGNATURE_FILE} does not cover {added[0]}: it was added after signing, or the signature belongs to "
                f"another folder; remove it, or {SIGN_AGAIN}"
            )


def _join(version: str, name: str) -> str:
    return f"{version}/{name}" if version else name
