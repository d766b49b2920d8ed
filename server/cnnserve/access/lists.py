"""The files that say who may do what: of tokens, and of client certificates.

Each line has the name of a client and its scopes, in the tokens file also the SHA-256 of the token. Empty lines and
lines that begin with `#` are comments.
"""

import errno
import hashlib
import hmac
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cnnserve.access.scopes import Client, scopes_of
from cnnserve.errors import reason

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Kinds of names in a certificate: its common name, and its subject alternative names.
KINDS = ("CN", "DNS", "URI", "email", "IP")
_MAX_BYTES = 2**20


class AccessError(Exception):
    """A file of access control cannot be used. The text names the file, the line and what to do."""


@dataclass(frozen=True)
class Tokens:
    """The clients by the SHA-256 of their tokens."""

    entries: tuple[tuple[bytes, Client], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def client(self, token: str) -> Client | None:
        """Returns the client that has this token. Takes as long for a wrong token as for the right one."""
        digest = digest_of(token)
        found = None
        for known, client in self.entries:
            if hmac.compare_digest(known, digest):
                found = client
        return found


@dataclass(frozen=True)
class Certificates:
    """The clients by a name in their certificate, such as "CN:web" or "DNS:web.example"."""

    clients: dict[str, Client]

    def __len__(self) -> int:
        return len(self.clients)

    def client(self, names: tuple[str, ...]) -> Client | None:
        """Returns the first client whose name is one of the certificate's `names`."""
        return next((client for name, client in self.clients.items() if name in names), None)


def digest_of(token: str) -> bytes:
    """Returns the SHA-256 of a token. Tokens have 256 random bits, so no slower hash is needed."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def valid_name(name: str) -> bool:
    """Returns whether a token may have this name."""
    return _NAME.fullmatch(name) is not None


def contents(path: Path, limit: int) -> bytes:
    """Returns a file's bytes, at most `limit`. Raises `OSError`, also for a pipe, which might never end."""
    # Before it is opened, because that waits for the writer. Whoever may replace the file in between writes it anyway.
    if stat.S_ISFIFO(path.stat().st_mode):
        raise OSError(errno.EINVAL, "It is a pipe")
    with path.open("rb") as file:
        return file.read(limit)


def read_tokens(path: Path) -> Tokens:
    """Reads a tokens file. Raises `AccessError`."""
    entries: dict[bytes, Client] = {}
    lines: dict[str, int] = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 3:
            raise _wrong(path, number, f"it has {len(fields)} fields, expected three: NAME SCOPES SHA256")
        name, scopes, text = fields
        if not valid_name(name):
            raise _wrong(path, number, f"the name {name!r:.80} is not 1 to 64 letters, digits, '.', '_' and '-'")
        if name in lines:
            raise _wrong(path, number, f"the name {name!r} is on line {lines[name]} too; give each token its own name")
        if not _DIGEST.fullmatch(text):
            raise _wrong(path, number, "the third field is no SHA-256 of 64 lower-case hexadecimal digits")
        digest = bytes.fromhex(text)
        if digest in entries:
            other = entries[digest].name
            raise _wrong(path, number, f"{name!r} has the same token as {other}; make a token of its own")
        lines[name] = number
        entries[digest] = _client(path, number, f"token {name}", scopes)
    return Tokens(tuple(entries.items()))


def read_certificates(path: Path) -> Certificates:
    """Reads a file with the scopes of certificates. Raises `AccessError`."""
    clients: dict[str, Client] = {}
    for number, line in _lines(path):
        # A common name may have spaces.
        name, _, scopes = line.rpartition(" ")
        name = name.strip()
        if name.partition(":")[0] not in KINDS or not name.partition(":")[2]:
            raise _wrong(path, number, f"expected KIND:NAME SCOPES, where KIND is one of {', '.join(KINDS)}")
        if name in clients:
            raise _wrong(path, number, f"the name {name!r:.80} is on another line too; keep one of them")
        clients[name] = _client(path, number, f"certificate {name}", scopes)
    return Certificates(clients)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        data = contents(path, _MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise AccessError(f"{path} has more than {_MAX_BYTES} bytes; name a file with one client a line")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessError(f"{path} cannot be read: {reason(error)}; name a readable text file") from error
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield number, stripped


def _client(path: Path, number: int, name: str, scopes: str) -> Client:
    try:
        return Client(name, scopes_of(scopes))
    except ValueError as error:
        raise _wrong(path, number, str(error)) from error


def _wrong(path: Path, number: int, problem: str) -> AccessError:
    return AccessError(f"{path}, line {number}: {problem}")
