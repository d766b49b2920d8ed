"""Reads a pack from an OCI registry, with the logins of docker and podman."""

import re
import urllib.parse
from dataclasses import dataclass
from typing import Self

from cnnserve import json_text
from cnnserve.sources import credentials, oci
from cnnserve.sources.credentials import Login
from cnnserve.sources.errors import NotFound, SourceError
from cnnserve.sources.oci import LARGEST_DOCUMENT, Descriptor
from cnnserve.sources.web import Body, Unauthorized, Web, check_url, host, shown, small

SCHEME = "oci://"
_REFERENCE = re.compile(
    r"(?P<host>[A-Za-z0-9.-]+(:[0-9]{1,5})?)/"
    r"(?P<name>[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*)"
    r"(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# Docker has a registry of another name behind these two.
_DOCKER, _NOT_REGISTRIES = "registry-1.docker.io", ("docker.io", "index.docker.io")
_PARAMETER = re.compile(r'([a-z]+)="([^"]*)"')
_ACCEPT = ", ".join((*oci.MANIFESTS, *oci.INDEXES))
_LARGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Reference:
    """Names a pack in a registry. `version`: a tag, or a digest."""

    host: str
    name: str
    version: str

    @classmethod
    def parse(cls, address: str) -> Self:
        """Returns what an address such as `oci://registry.example.org/models/birds:1` names. Raises `SourceError`."""
        match = _REFERENCE.fullmatch(address.removeprefix(SCHEME))
        version = match and (match["digest"] or match["tag"])
        if not match or not version:
            raise SourceError(
                f"{address[:200]!r} is no pack in a registry; write {SCHEME}HOST/NAME:TAG or {SCHEME}HOST/NAME@sha256:…"
            )
        host = match["host"].lower().removesuffix(":443")
        if host in _NOT_REGISTRIES:
            raise SourceError(f"{host} is no registry; write {SCHEME}{_DOCKER}/{match['name']} with its tag")
        return cls(host, match["name"], version)


class Registry:
    """The blobs of one pack in a registry."""

    def __init__(self, reference: Reference, web: Web) -> None:
        self._reference = reference
        self._web = web
        self._base = f"https://{reference.host}/v2/{reference.name}"
        self._authorization = ""

    def manifest(self) -> tuple[bytes, str]:
        """Returns the manifest and its digest. Raises `SourceError`, also if it is not the one that was asked for."""
        data, media_type = self._document(self._reference.version)
        if media_type in oci.INDEXES or (media_type not in oci.MANIFESTS and b'"manifests"' in data):
            data, _ = self._document(oci.chosen(data).digest)
        return data, oci.descriptor(oci.MANIFEST, data).digest

    def open(self, blob: Descriptor) -> Body:
        """Returns the content of a blob, which may be wrong: compare its size and its digest."""
        try:
            return self._get(f"{self._base}/blobs/{blob.digest}")
        except NotFound as error:
            raise SourceError(f"{error}: the registry has only a part of the pack; push it again") from error

    def _document(self, version: str) -> tuple[bytes, str]:
        with self._get(f"{self._base}/manifests/{version}") as body:
            data, stated = small(body, "the manifest", LARGEST_DOCUMENT), body.header("Docker-Content-Digest")
        found = oci.descriptor(oci.MANIFEST, data).digest
        for expected in (version if version.startswith("sha256:") else "", stated):
            if expected.startswith("sha256:") and expected != found:
                raise SourceError(
                    f"the manifest of {SCHEME}{self._reference.host}/{self._reference.name} is damaged or was changed: "
                    f"its digest is {found[:19]}…, expected {expected[:19]}…; try again, or push the pack again"
                )
        return data, body.header("Content-Type").partition(";")[0].strip()

    def _get(self, url: str) -> Body:
        headers = {"Accept": _ACCEPT} if "/manifests/" in url else {}
        try:
            return self._web.get(url, headers, self._authorization)
        except Unauthorized as error:
            # Also if a token has expired meanwhile.
            self._authorization, advice = self._authorized(error.challenge)
        try:
            return self._web.get(url, headers, self._authorization)
        except Unauthorized as error:
            raise SourceError(f"{shown(url)} is not for us (status 401): {advice}") from error

    def _authorized(self, challenge: str) -> tuple[str, str]:
        """Returns the header Authorization that a challenge wants, and what to do if it is refused."""
        registry = self._reference.host
        login, advice = credentials.of_registry(registry)
        scheme, _, rest = challenge.partition(" ")
        advice = advice or f"the login of {registry} is refused, or may not read {self._reference.name}; log in again"
        if scheme.lower() == "basic":
            if login is None:
                raise SourceError(f"{registry} wants a user name and a password (status 401): {advice}")
            return login.basic, advice
        if scheme.lower() != "bearer":
            raise SourceError(f"{registry} wants the authentication {scheme[:40]!r}, which is not known: {advice}")
        return f"Bearer {self._token(dict(_PARAMETER.findall(rest)), login, advice)}", advice

    def _token(self, parameters: dict[str, str], login: Login | None, advice: str) -> str:
        realm = parameters.get("realm", "")
        self._check_realm(realm, login)
        query = {"service": parameters.get("service", ""), "scope": f"repository:{self._reference.name}:pull"}
        if login is not None and login.identity_token:
            raise SourceError(
                f"the login of {self._reference.host} is an identity token, which is not supported; log in with a "
                "password or an access token"
            )
        url = f"{realm}{'&' if '?' in realm else '?'}{urllib.parse.urlencode({k: v for k, v in query.items() if v})}"
        try:
            with self._web.get(url, authorization=login.basic if login else "") as body:
                answer = json_text.loads(small(body, shown(realm), _LARGEST_ANSWER))
        except (Unauthorized, NotFound) as error:
            raise SourceError(f"{shown(realm)} gives no token for {self._reference.name}: {advice}") from error
        except ValueError as error:
            raise SourceError(
                f"{shown(realm)} returned no JSON in place of a token: {error}; try again later"
            ) from error
        token = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
        # What is no word would become further headers.
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise SourceError(f"{shown(realm)} returned no token; try again later")
        return token

    def _check_realm(self, realm: str, login: Login | None) -> None:
        if not realm.lower().startswith("https:"):
            raise SourceError(
                f"{self._reference.host} wants a token of {shown(realm)[:200]!r}, which is not HTTPS; ask its owner to "
                "correct the realm"
            )
        check_url(realm)
        if login is not None and not self._web.may_have_credentials(host(realm), self._reference.host):
            raise SourceError(
                f"{self._reference.host} wants its user name and password to be sent to {host(realm)}, another host, "
                f"for a token; if that is right, pull with --send-credentials-to {host(realm)}"
            )
