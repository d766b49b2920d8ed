"""Certificates and keys: read, refused with the reason, and watched."""

import datetime as dt
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from certificates import Authority
from cnnserve.access.lists import AccessError
from cnnserve.access.tls import Tls, TlsFiles, names_of

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def pipe(key: Path) -> Path:
    os.mkfifo(key.with_name("pipe"))
    return key.with_name("pipe")


def with_passphrase(path: Path) -> Path:
    key = serialization.load_pem_private_key(path.read_bytes(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    return path


def test_the_end_of_a_certificate_is_known(authority: Authority) -> None:
    end = now().replace(microsecond=0) + 100 * DAY
    tls = Tls(authority.issue("server", "127.0.0.1", not_after=end))
    assert tls.identity.expires == end.timestamp()
    assert tls.identity.certificate == tls.files.certificate.read_bytes()


BROKEN: dict[str, tuple[Callable[[Authority, TlsFiles], TlsFiles], str]] = {
    "expired": (
        lambda authority, _: authority.issue("server", "127.0.0.1", not_after=now() - DAY),
        "server.pem cannot be used: certificate has expired; write a valid certificate",
    ),
    "too early": (
        lambda authority, _: authority.issue("server", "127.0.0.1", not_before=now() + DAY),
        "server.pem cannot be used: certificate is not yet valid",
    ),
    "another key": (
        lambda authority, files: TlsFiles(files.certificate, authority.issue("other").key),
        "other.key is not the key of ",
    ),
    "half a certificate": (
        lambda _, files: TlsFiles(half(files.certificate), files.key),
        "server.pem has no complete PEM certificate",
    ),
    "half a key": (
        lambda _, files: TlsFiles(files.certificate, half(files.key)),
        "server.key cannot be used: ",
    ),
    "no key": (
        lambda _, files: TlsFiles(files.certificate, files.certificate),
        "server.pem has no PEM private key",
    ),
    "a key with a passphrase": (
        lambda _, files: TlsFiles(files.certificate, with_passphrase(files.key)),
        "without a passphrase",
    ),
    "no file": (
        lambda _, files: TlsFiles(files.certificate.with_name("nowhere"), files.key),
        "nowhere cannot be read: No such file or directory; name a readable PEM file",
    ),
    "a pipe": (
        lambda _, files: TlsFiles(files.certificate, pipe(files.key)),
        "pipe cannot be read: It is a pipe; name a readable PEM file",
    ),
    "an authority that is none": (
        lambda _, files: TlsFiles(files.certificate, files.key, files.key),
        "server.key cannot be used: NO_CERTIFICATE_OR_CRL_FOUND; write the PEM certificates of the authorities",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_used_is_told(authority: Authority, what: str) -> None:
    spoil, said = BROKEN[what]
    files = spoil(authority, authority.issue("server"))
    with pytest.raises(AccessError) as caught:
        Tls(files)
    assert said in str(caught.value)
    assert str(authority.folder) in str(caught.value)


def test_files_that_are_broken_later_change_nothing(authority: Authority) -> None:
    tls = Tls(authority.issue("server"))
    before = tls.identity
    authority.issue("server", "127.0.0.1", not_after=now() - DAY)
    with pytest.raises(AccessError):
        tls.read()
    assert tls.identity is before
    authority.issue("server")
    tls.read()
    assert tls.identity is not before


def test_the_end_is_announced_once_a_day(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    end = now() + 20 * DAY
    time_s = now().timestamp()
    tls = Tls(authority.issue("server", "127.0.0.1", not_after=end), clock=lambda: time_s)
    with caplog.at_level(logging.WARNING):
        tls.warn()
        assert not caplog.records
        time_s += 7 * 86400
        for _ in range(5):
            tls.warn()
        assert [record.getMessage() for record in caplog.records] == [
            f"the certificate {tls.files.certificate} expires in 13.0 days; write a new one into the file"
        ]
        time_s += 86400
        tls.warn()
        time_s += 86400 * 20
        tls.warn()
    assert "12.0 days" in caplog.records[1].getMessage()
    assert "has expired" in caplog.records[2].getMessage()


def test_names_of_a_certificate() -> None:
    assert names_of(None) == names_of({}) == ()
    found = {
        "subject": ((("organizationName", "x"),), (("commonName", "web client"),)),
        "subjectAltName": (("DNS", "a.example"), ("URI", "spiffe://x"), ("email", "a@b"), ("IP Address", "10.0.0.1")),
    }
    assert names_of(found) == ("CN:web client", "DNS:a.example", "URI:spiffe://x", "email:a@b", "IP:10.0.0.1")


def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    context = Tls(authority.issue("server")).identity.context
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
