"""Access control as the settings want it: the guard, and the files that it follows."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cnnserve.access.accounts import ClientLimits
from cnnserve.access.addresses import networks
from cnnserve.access.following import Followed, follow
from cnnserve.access.guard import Guard
from cnnserve.access.lists import Certificates, Tokens, read_certificates, read_tokens
from cnnserve.access.tls import Tls, TlsFiles


class AccessControl:
    """Reads the files of access control, now and when they change. Raises `AccessError` if one cannot be used."""

    def __init__(
        self,
        tokens_file: Path | None = None,
        certificate_scopes_file: Path | None = None,
        trusted_proxies: Sequence[str] = (),
        *,
        tls_files: TlsFiles | None = None,
        limits: ClientLimits = ClientLimits(),  # noqa: B008 - it is frozen
    ) -> None:
        self._tokens: Tokens | None = None
        self._certificates: Certificates | None = None
        self._guard = Guard(trusted_proxies=networks(trusted_proxies), limits=limits)
        self._files: list[Followed] = []
        # The certificate of both ports, None for plain text.
        self.tls = Tls(tls_files) if tls_files else None
        if self.tls is not None:
            self._files.append(Followed("TLS certificate", self.tls.files.paths, self.tls.read))
        if tokens_file is not None:
            self._files.append(Followed("tokens", (tokens_file,), lambda: self._read_tokens(tokens_file)))
        if certificate_scopes_file is not None:
            path = certificate_scopes_file
            self._files.append(Followed("scopes of certificates", (path,), lambda: self._read_certificates(path)))

    @property
    def guard(self) -> Guard | None:
        """What the transports ask for each call; None: all calls may pass, so nothing is asked."""
        return self._guard if self._guard.has_work else None

    @property
    def certificate_end(self) -> float | None:
        """The end of the certificate in seconds since 1970, None if there is none."""
        return self.tls.identity.expires if self.tls else None

    async def follow(self, reread: asyncio.Event | None = None, more: Sequence[Followed] = ()) -> None:
        """Reads changed files, and `more`, again until it is cancelled; all of them each time `reread` is set."""
        await follow([*self._files, *more], reread, also=self.tls.warn if self.tls else None)

    def _read_tokens(self, path: Path) -> None:
        self._tokens = read_tokens(path)
        self._guard.renew(self._tokens, self._certificates)

    def _read_certificates(self, path: Path) -> None:
        self._certificates = read_certificates(path)
        self._guard.renew(self._tokens, self._certificates)
