"""Real certificates in files, from an authority of the tests."""

from pathlib import Path
from typing import Any

import trustme

from cnnserve.access.tls import TlsFiles


class Authority:
    """Issues certificates into a folder. `root` is the file with its own one."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ca = trustme.CA()
        self.root = folder / f"{name}.pem"
        self.root.write_bytes(self._ca.cert_pem.bytes())

    def issue(self, name: str, *identities: str, **more: Any) -> TlsFiles:
        """Writes NAME.pem and NAME.key: for this machine, unless there are `identities`. Replaces older ones."""
        issued = self._ca.issue_cert(*(identities or ("127.0.0.1", "localhost")), **more)
        files = TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        files.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        files.key.write_bytes(issued.private_key_pem.bytes())
        return files


def flags(files: TlsFiles, client_ca: Path | None = None) -> list[str]:
    """The flags of `cnnserve serve` for these files."""
    found = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    return found if client_ca is None else [*found, "--tls-client-ca", str(client_ca)]
