"""Encrypted connections that are proved both ways, and tokens that nobody else reads."""

import grpc
import pytest
import trustme

import cnnserve_client as cc
from cnnserve_client.security import is_local
from peer import Peer, running


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path):
    """PEM files: the authority's certificate, and a client's certificate and key."""
    mine = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(tmp_path / "root.pem")
    mine.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in mine.cert_chain_pems:
        blob.write_to_path(tmp_path / "certificate.pem", append=True)
    return tmp_path


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def secure(request, authority):
    """A peer behind TLS; with `mutual`, it wants a certificate of its callers."""
    server = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials(
        [(server.private_key_pem.bytes(), b"".join(blob.bytes() for blob in server.cert_chain_pems))],
        authority.cert_pem.bytes(),
        require_client_auth=request.param,
    )
    with running(Peer(), credentials=credentials) as peer:
        yield peer


def test_a_client_with_certificates_is_served_and_its_token_arrives(secure, ask, many, files):
    tls = cc.Tls(files / "root.pem", files / "certificate.pem", files / "key.pem")
    settings = {"tls": tls, "token": "s3cret"}
    assert ask(secure.address, "classify", b"x", model="digits", limits=settings).results[0].ok
    assert many(secure.address, [b"x"], limits=settings)[0].ok
    assert {metadata.get("authorization") for metadata in secure.metadata} == {"Bearer s3cret"}


@pytest.mark.parametrize("tls", [False, True])
def test_a_server_that_nothing_vouches_for_is_not_spoken_to(secure, ask, tls):
    with pytest.raises(cc.UnavailableError):
        ask(secure.address, "classify", b"x", model="digits", limits={"tls": tls, "retries": 0})
    assert secure.asked == []


def test_plain_clients_send_no_token_where_there_is_none(peer, ask):
    ask(peer.address, "list_models")
    assert "authorization" not in peer.metadata[0]


def test_a_token_goes_to_this_machine_in_plain_text(peer, ask):
    ask(peer.address, "list_models", limits={"token": "s3cret"})
    assert peer.metadata[0]["authorization"] == "Bearer s3cret"


@pytest.mark.parametrize("address", ["example.com:8001", "127.0.0.1:1,10.0.0.1:8001", "dns:///localhost:1"])
def test_a_token_goes_nowhere_else_in_plain_text(ask, address):
    with pytest.raises(cc.InvalidInputError, match=r"a token would go to .* in plain text: use TLS"):
        ask(address, "list_models", limits={"token": "s3cret"})


def test_unless_that_is_said_to_be_safe():
    with cc.Client("example.com:8001", token="s3cret", token_over_plain_text=True) as client:
        assert "s3cret" not in repr(client) + repr(client._target) + repr(vars(client))


@pytest.mark.parametrize("token", ["two words", "Größe", "line\nbreak"])
def test_a_token_that_is_no_header_is_refused(ask, token):
    with pytest.raises(cc.InvalidInputError, match="token holds characters") as caught:
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
        (lambda folder: cc.Tls(folder / "key.pem"), "root_certificates: .*key.pem' holds no PEM certificate"),
        (lambda folder: cc.Tls(certificate=folder / "certificate.pem"), "key is missing"),
        (lambda folder: cc.Tls(key=folder / "key.pem"), "certificate is missing"),
    ],
)
def test_files_that_cannot_be_used_are_named(ask, files, tls, expected):
    with pytest.raises(cc.InvalidInputError, match=expected):
        ask("localhost:1", "list_models", limits={"tls": tls(files)})
