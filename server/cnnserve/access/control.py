"""Access control as the settings want it: the guard, and the files that it follows."""

from collections.abc import Sequence
from pathlib import Path

from cnnserve.access.addresses import networks
from cnnserve.access.following import Followed
from cnnserve.access.guard import Guard
from cnnserve.access.lists import Certificates, Tokens, read_certificates, read_tokens


class AccessControl:
    """Reads the files of access control, now and when they change. Raises `AccessError` if one cannot be used."""

    def __init__(
        self,
        tokens_file: Path | None = None,
        certificate_scopes_file: Path | None = None,
        trusted_proxies: Sequence[str] = (),
    ) -> None:
        self._tokens: Tokens | None = None
        self._certificates: Certificates | None = None
        self._guard = Guard(trusted_proxies=networks(trusted_proxies))
        self.files: list[Followed] = []
        if tokens_file is not None:
            self.files.append(Followed("tokens", (tokens_file,), lambda: self._read_tokens(tokens_file)))
        if certificate_scopes_file is not None:
            path = certificate_scopes_file
            self.files.append(Followed("scopes of certificates", (path,), lambda: self._read_certificates(path)))

    @property
    def guard(self) -> Guard | None:
        """What the transports ask for each call; None: all calls may pass, so nothing is asked."""
        return self._guard if self._guard.has_work else None

    def _read_tokens(self, path: Path) -> None:
        self._tokens = read_tokens(path)
        self._guard.renew(self._tokens, self._certificates)

    def _read_certificates(self, path: Path) -> None:
        self._certificates = read_certificates(path)
        self._guard.renew(self._tokens, self._certificates)
