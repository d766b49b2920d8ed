"""TLS connections on which server and client check each other, and tokens that are sent only over TLS."""

import contextlib
import datetime as dt
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

import cnnserve_client as cc
from cnnserve_client.connecting import unavailable
from cnnserve_client.security import is_local
from peer import Peer, running


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    """PEM files: the certificate of the authority, and certificate and key of a client."""
    mine = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in mine.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    return tmp_path


@contextlib.contextmanager
def behind(certificate: trustme.LeafCert, **settings: object) -> Iterator[Peer]:
    """Yields a peer with this certificate."""
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    pair = (certificate.private_key_pem.bytes(), chain)
    with running(Peer(), credentials=grpc.ssl_server_credentials([pair], **settings)) as peer:
        yield peer


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def secure(request, authority):
    """Yields a peer that speaks TLS. `mutual`: it demands a certificate of its clients."""
    trusted = authority.cert_pem.bytes()
    with behind(
        authority.issue_cert("127.0.0.1"), root_certificates=trusted, require_client_auth=request.param
    ) as peer:
        yield peer


def test_a_client_with_certificates_is_served_and_its_token_arrives(secure, ask, many, files):
    tls = cc.Tls(files / "root.pem", files / "certificate.pem", files / "key.pem")
    settings = {"tls": tls, "token": "s3cret"}
    assert ask(secure.address, "classify", b"x", model="digits", limits=settings).results[0].ok
    assert many(secure.address, [b"x"], limits=settings)[0].ok
    assert {metadata.get("authorization") for metadata in secure.metadata} == {"Bearer s3cret"}


def refused(ask, peer: Peer, **settings: object) -> str:
    """Returns the error of a client that gets no connection, after checking that the peer received no request."""
    with pytest.raises(cc.ConnectionFailedError) as caught:
        ask(peer.address, "classify", b"x", model="digits", limits={"retries": 0, **settings})
    assert peer.asked == []
    assert peer.address in str(caught.value)
    assert "check that `cnnserve serve` runs" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_nothing_vouches_for_is_not_spoken_to(secure, ask, files, tmp_path):
    for tls in (True, stranger(tmp_path)):
        assert re.search(r"not trusted \([a-z ]+\): set root_certificates to", refused(ask, secure, tls=tls))


def stranger(folder: Path) -> cc.Tls:
    """Returns TLS settings that trust another authority."""
    trustme.CA().cert_pem.write_to_path(folder / "stranger.pem")
    return cc.Tls(folder / "stranger.pem")


def test_a_certificate_for_another_name_is_told_as_that(authority, ask, files):
    with behind(authority.issue_cert("elsewhere.example")) as peer:
        assert "is for another host name" in refused(ask, peer, tls=cc.Tls(files / "root.pem"))


def test_a_certificate_that_has_expired_is_told_as_that(authority, ask, files):
    old = authority.issue_cert("127.0.0.1", not_after=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    with behind(old) as peer:
        assert "(certificate has expired): give the server a new certificate" in refused(
            ask, peer, tls=cc.Tls(files / "root.pem")
        )


def test_tls_to_a_server_without_it_is_told_as_that(peer, ask):
    assert "does not use TLS: connect without TLS" in refused(ask, peer, tls=True)


def test_plain_text_to_a_server_with_tls_is_told_as_that(authority, ask):
    with behind(authority.issue_cert("127.0.0.1")) as peer:
        assert "if it requires TLS, set tls or root_certificates" in refused(ask, peer)


def test_files_that_tls_cannot_use_are_told_as_that(secure, ask, files, tmp_path):
    hollow = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    (tmp_path / "hollow.pem").write_text(hollow)
    with pytest.raises(cc.ConnectionFailedError, match="TLS cannot use the given files"):
        ask(
            secure.address,
            "classify",
            b"x",
            model="digits",
            limits={"retries": 0, "tls": cc.Tls(tmp_path / "hollow.pem")},
        )


def test_a_missing_client_certificate_is_told_as_that(authority, ask, files):
    certificate = authority.issue_cert("127.0.0.1")
    with behind(certificate, root_certificates=authority.cert_pem.bytes(), require_client_auth=True) as peer:
        assert "if it requires a client certificate, set certificate and key" in refused(
            ask, peer, tls=cc.Tls(files / "root.pem")
        )


@pytest.mark.parametrize(
    ("details", "said"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: Ssl handshake failed",
            "the TLS handshake with the server at a:1 failed",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: Peer name a is not in peer certificate",
            "is for another host name",
        ),
        ("connections to all backends failing; last error: Connection refused", "check that `cnnserve serve` runs"),
        ("connections to all backends failing; CERTIFICATE_VERIFY_FAILED", "not trusted (unknown reason)"),
        ("the model is loading", "a:1: the model is loading"),
    ],
)
def test_other_errors_of_grpc(details, said):
    error = unavailable("a:1", details, encrypted=True)
    assert said in str(error)
    assert details in str(error)


def test_plain_clients_send_no_token_where_there_is_none(peer, ask):
    ask(peer.address, "list_models")
    assert "authorization" not in peer.metadata[0]


def test_a_token_goes_to_this_machine_in_plain_text(peer, ask):
    ask(peer.address, "list_models", limits={"token": "s3cret"})
    assert peer.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("address", ["example.com:8001", "127.0.0.1:1,10.0.0.1:8001", "dns:///localhost:1"])
def test_a_token_goes_nowhere_else_in_plain_text(ask, address):
    with pytest.raises(cc.InvalidInputError, match=r"the token would go to .* without TLS: use TLS"):
        ask(address, "list_models", limits={"token": "s3cret"})


def test_a_token_in_plain_text_can_be_allowed():
    with cc.Client("example.com:8001", token="s3cret", token_over_plain_text=True) as client:
        assert "s3cret" not in repr(client) + repr(client._target) + repr(vars(client))


@pytest.mark.parametrize("token", ["two words", "Größe", "line\nbreak"])
def test_a_token_that_is_no_header_is_refused(ask, token):
    with pytest.raises(cc.InvalidInputError, match="token has characters") as caught:
        ask("localhost:1", "list_models", limits={"token": token})
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("localhost:1", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("::1", True),
        ("unix:/tmp/socket", True),
        ("localhost.example.com:1", False),
        ("10.0.0.1:1", False),
        ("[::2]:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("127.0.0.1.example.com:1", False),
    ],
)
def test_what_is_this_machine(address, local):
    assert is_local(address) is local


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        (lambda folder: cc.Tls(folder / "gone.pem"), "root_certificates: cannot read .*gone.pem': No such file"),
        (lambda folder: cc.Tls(folder / "key.pem"), "root_certificates: .*key.pem' contains no PEM certificate"),
        (lambda folder: cc.Tls(certificate=folder / "certificate.pem"), "key is missing"),
        (lambda folder: cc.Tls(key=folder / "key.pem"), "certificate is missing"),
    ],
)
def test_files_that_cannot_be_used_are_named(ask, files, tls, expected):
    with pytest.raises(cc.InvalidInputError, match=expected):
        ask("localhost:1", "list_models", limits={"tls": tls(files)})
