"""Signs folders with OpenSSF's model-signing. The bundle lies in the folder, and its own tool accepts it.

A version's signature covers all files of its folder. A model's signature covers the files beside the version folders,
such as config.pbtxt. Both are made with a key of your own, without a network.
"""

import shutil
import tempfile
from pathlib import Path

import model_signing
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from cnnserve.repository import manifest as manifests
from cnnserve.repository import signature
from cnnserve.repository.folders import model_folder, named, version_number
from cnnserve.repository.manifest import MANIFEST_FILE, SCHEMA
from cnnserve.repository.signature import SIGNATURE_FILE
from cnnserve.repository.staging import explained, replace_file
from cnnserve.trust.certificates import Untrusted, check_leaf
from cnnserve_export.errors import ExportError

_NEW_KEY = "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"


class Signer:
    """Signs with a private key, and with its certificate if there is one.

    `certificate`: PEM file with the certificate of the key first, then those of the authorities between it and a
    trusted one. The key is read now. Raises `ExportError`.
    """

    def __init__(self, key: Path, certificate: Path | None = None) -> None:
        self._config = model_signing.signing.Config()  # type: ignore[no-untyped-call]
        try:
            if certificate is None:
                self._config.use_elliptic_key_signer(private_key=key)
            else:
                check_leaf(x509.load_pem_x509_certificate(certificate.read_bytes()))
                # model-signing wants a chain that is not empty. A certificate that is there twice does no harm.
                self._config.use_certificate_signer(
                    private_key=key, signing_certificate=certificate, certificate_chain=[certificate]
                )
        except OSError as error:
            raise ExportError(f"{error.filename} cannot be read: {error.strerror}") from error
        except Untrusted as error:
            raise ExportError(str(error)) from error
        except TypeError as error:
            raise ExportError(
                f"{key} is encrypted; decrypt it for this command only: --key <(openssl pkey -in {key})"
            ) from error
        except (ValueError, AttributeError, UnsupportedAlgorithm) as error:
            files = str(key) if certificate is None else f"{key} or {certificate}"
            raise ExportError(
                f"{files} cannot be used: {error}; a private key of the curve P-256, P-384 or P-521 in PEM is needed: "
                f"{_NEW_KEY}"
            ) from error

    def sign_version(self, folder: Path) -> Path:
        """Signs a version folder and returns the path of the signature.

        Raises `ExportError` if the files are not those of its manifest, or if its contract is not 2, and
        `ModelLoadFailed` if the manifest is broken: a server with trusted keys would refuse all of them.
        """
        manifest = manifests.read(folder)
        if manifest is None:
            raise ExportError(f"{folder} has no {MANIFEST_FILE}; sign a version that cnnserve published")
        if manifest.schema != SCHEMA:
            raise ExportError(
                f"{folder} has contract {manifest.schema}, signatures need {SCHEMA}; publish it again with cnnserve "
                "upgrade, and sign the new version"
            )
        hidden = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        bundle = self._bundle(folder, {SIGNATURE_FILE, *hidden})
        signed = signature.statement(signature.envelope(bundle).payload).files
        for name, file in manifest.files.items():
            if signed.get(name) != file.sha256:
                raise ExportError(
                    f"{folder / name} is not the file that {MANIFEST_FILE} describes; copy or export the version again"
                )
        return _write(folder, bundle)

    def sign_model(self, folder: Path, name: str) -> Path:
        """Signs the files beside the version folders of the model `name`, and returns the path of the signature."""
        versions = {path.name for path in folder.iterdir() if version_number(path.name)}
        with tempfile.TemporaryDirectory() as scratch:
            # A copy without the versions, because model-signing would look through them, too.
            copy = Path(scratch, name)
            copy.mkdir()
            for path in _beside_versions(folder):
                if path.is_dir():
                    shutil.copytree(path, copy / path.name)
                else:
                    shutil.copyfile(path, copy / path.name)
            return _write(folder, self._bundle(copy, {SIGNATURE_FILE, *versions}))

    def _bundle(self, folder: Path, ignored: set[str]) -> bytes:
        hashing = model_signing.hashing.Config()  # type: ignore[no-untyped-call]
        hashing.set_ignored_paths(paths=sorted(ignored), ignore_git_paths=False)
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch, SIGNATURE_FILE)
            try:
                self._config.set_hashing_config(hashing).sign(folder.absolute(), file)
            except ValueError as error:
                raise ExportError(f"{folder} cannot be signed: {error}; put files there instead of links") from error
            return file.read_bytes()


def sign(path: Path, signer: Signer) -> Path:
    """Signs a version folder, or the files of a model folder beside its versions; returns the path of the signature."""
    folder = named(path)
    with explained(folder, ExportError):
        if (folder / MANIFEST_FILE).exists():
            return signer.sign_version(folder)
        if model_folder(folder).versions:
            return signer.sign_model(folder, folder.name)
    raise ExportError(f"{path} is neither the folder of a version nor that of a model; give MODEL or MODEL/VERSION")


def _beside_versions(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if not version_number(path.name) and path.name != SIGNATURE_FILE and not path.name.startswith(".")
    ]


def _write(folder: Path, bundle: bytes) -> Path:
    """Puts a signature in its place by one rename: a server never sees half of it."""
    path = folder / SIGNATURE_FILE
    replace_file(path, bundle)
    return path
