"""Pulls from a registry over TLS: tokens, logins, and what a registry must not be able to do."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import Authority
from cnnserve.sources.errors import SourceError
from cnnserve.sources.pull import pull
from cnnserve.sources.room import Room
from pulls import layer, names, pulled
from web_servers import Answer, OciRegistry, Request, Site

LOGIN = ("reader", "pass:word")


def log_in(home: Path, host: str, user: str, password: str, **more: object) -> None:
    """Writes what docker login writes."""
    entry = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: entry}, **more}))


def refused(registry: OciRegistry, folder: Path, problem: str, address: str = "", **more: object) -> None:
    with pytest.raises(SourceError, match=problem) as caught:
        pull(address or registry.address, folder, Room(), **more)  # type: ignore[arg-type]
    assert LOGIN[1] not in str(caught.value)
    assert names(folder) == []


def test_a_pack_that_everybody_may_read(registry: OciRegistry, tmp_path: Path) -> None:
    pulled(registry.address, tmp_path / "by-tag")
    digest = registry.top["digest"]
    pulled(f"oci://{registry.host}/models/lenet5@{digest}", tmp_path / "by-digest")
    # One challenge for each pull: the token serves for all the rest.
    assert sum(not request.authorization for request in registry.site.requests) == 2 * 2


def test_an_image_of_several_platforms(authority: Authority, made: Path, trusted: Path, tmp_path: Path) -> None:
    registry = OciRegistry(authority, made / "modelcar")
    try:
        pulled(registry.address, tmp_path)
    finally:
        registry.site.close()


@pytest.mark.parametrize("tokens", [True, False])
def test_the_login_of_docker(registry: OciRegistry, trusted: Path, tokens: bool, tmp_path: Path) -> None:
    registry.login, registry.tokens = LOGIN, tokens
    refused(registry, tmp_path, rf"docker login {registry.host} or podman login")
    log_in(trusted, registry.host, "reader", "wrong")
    refused(registry, tmp_path, "the login of .* is refused, or may not read models/lenet5; log in again")
    log_in(trusted, registry.host, *LOGIN)
    pulled(registry.address, tmp_path)


def test_the_login_of_podman(
    registry: OciRegistry, trusted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry.login = LOGIN
    log_in(trusted, registry.host, *LOGIN)
    file = (trusted / ".docker" / "config.json").rename(trusted / "auth.json")
    refused(registry, tmp_path, "podman login")
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(file))
    pulled(registry.address, tmp_path)


def test_a_login_of_another_registry_stays_where_it_is(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    log_in(trusted, "other.example.org", *LOGIN)
    pulled(registry.address, tmp_path)
    assert not any("Basic" in request.authorization for request in registry.site.requests)


def test_a_credential_helper_is_not_run(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    registry.login = LOGIN
    log_in(trusted, "other.example.org", *LOGIN, credsStore="evil")
    refused(registry, tmp_path, "leaves the login to a credential helper, which is not run; write an entry for")


@pytest.mark.parametrize(
    ("content", "problem"),
    [("{", "is not JSON"), ('{"auths": {"HOST": {"auth": "%"}}}', "an entry that is not base64; log in again")],
)
def test_a_damaged_file_of_logins(
    content: str, problem: str, registry: OciRegistry, trusted: Path, tmp_path: Path
) -> None:
    (trusted / ".docker").mkdir()
    (trusted / ".docker" / "config.json").write_text(content.replace("HOST", registry.host))
    refused(registry, tmp_path, problem)


def test_an_identity_token_is_refused_by_name(registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    (trusted / ".docker").mkdir()
    content = {"auths": {registry.host: {"auth": base64.b64encode(b"0:").decode(), "identitytoken": "x"}}}
    (trusted / ".docker" / "config.json").write_text(json.dumps(content))
    refused(registry, tmp_path, "is an identity token, which is not supported")


@pytest.fixture
def foreign(registry: OciRegistry, authority: Authority) -> Iterator[Site]:
    """A token service on another host, to which the registry sends its clients."""
    site = Site(authority, registry._token, "localhost")
    registry.realm = f"{site.url}/token"
    yield site
    site.close()


def test_a_foreign_token_realm_gets_no_login(
    registry: OciRegistry, foreign: Site, trusted: Path, tmp_path: Path
) -> None:
    registry.login = LOGIN
    log_in(trusted, registry.host, *LOGIN)
    refused(registry, tmp_path, f"to be sent to {foreign.host}, another host.*--send-credentials-to {foreign.host}")
    assert foreign.requests == []
    pulled(registry.address, tmp_path, credential_hosts=[foreign.host])


def test_a_foreign_token_realm_without_a_login(registry: OciRegistry, foreign: Site, tmp_path: Path) -> None:
    pulled(registry.address, tmp_path)
    assert [request.authorization for request in foreign.requests] == [""]


@pytest.mark.parametrize("realm", ["https://127.0.0.1:x/token", "https://me:secret@127.0.0.1/token", "https://[/token"])
def test_a_token_realm_that_is_no_address(realm: str, registry: OciRegistry, trusted: Path, tmp_path: Path) -> None:
    log_in(trusted, registry.host, *LOGIN)
    registry.realm = realm
    refused(registry, tmp_path, "is no address|has a user name or a password in it")


@pytest.mark.parametrize("realm", ["http://127.0.0.1/token", "ftp://127.0.0.1/token", ""])
def test_a_token_realm_that_is_not_https(realm: str, registry: OciRegistry, tmp_path: Path) -> None:
    registry.realm = realm
    refused(registry, tmp_path, "which is not HTTPS; ask its owner to correct the realm")


@pytest.mark.parametrize(
    ("body", "problem"),
    [(b"x", "returned no JSON"), (b"{}", "no token"), (b'{"token": "a\\r\\nX: y"}', "no token"), (b"[]", "no token")],
)
def test_a_token_service_that_gives_no_token(body: bytes, problem: str, registry: OciRegistry, tmp_path: Path) -> None:
    registry.change = lambda request, answer: Answer(body=body) if request.path.startswith("/token") else answer
    refused(registry, tmp_path, problem)


def test_an_authentication_that_is_not_known(registry: OciRegistry, tmp_path: Path) -> None:
    registry.change = lambda *_: Answer(401, headers={"WWW-Authenticate": "Negotiate"})
    refused(registry, tmp_path, "wants the authentication 'Negotiate', which is not known")


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("2", r"/v2/models/lenet5/manifests/2 does not exist \(status 404\); correct the address, or log in"),
        (f"sha256:{'0' * 64}", r"does not exist \(status 404\)"),
    ],
)
def test_a_pack_that_is_not_there(version: str, problem: str, registry: OciRegistry, tmp_path: Path) -> None:
    sign = "@" if ":" in version else ":"
    refused(registry, tmp_path, problem, f"oci://{registry.host}/models/lenet5{sign}{version}")


def changed(path: str, change: Callable[[Answer], Answer]) -> Callable[[Request, Answer], Answer]:
    def apply(request: Request, answer: Answer) -> Answer:
        return change(answer) if path in request.path and answer.status == 200 else answer

    return apply


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda answer: Answer(404), "the registry has only a part of the pack; push it again"),
        (lambda answer: Answer(403), "the server returned status 403; log in as somebody who may read it"),
        (lambda answer: Answer(500), "the server returned status 500; try again later"),
        (lambda answer: Answer(429, headers={"Retry-After": "30"}), "returned status 429; try again after 30 s"),
        (lambda answer: Answer(429, headers={"Retry-After": "Fri, 31 Dec 1999"}), "status 429; try again later"),
        (lambda answer: Answer(401, headers={"WWW-Authenticate": "Basic"}), "wants a user name and a password"),
        (lambda answer: Answer(body=answer.body[: len(answer.body) // 2]), r"ended after \d+ of \d+ bytes: the transf"),
        (lambda answer: Answer(body=answer.body[:9], length=len(answer.body)), r"ended after 9 of \d+ bytes"),
        (lambda answer: Answer(body=answer.body + b"x"), "more than the .* bytes that were announced"),
        (lambda answer: Answer(body=bytes(len(answer.body))), "is damaged or was changed: SHA-256"),
        (lambda answer: Answer(302), "returned status 302"),
        (lambda answer: Answer(302, headers={"Location": "http://127.0.0.1/x"}), "which is not HTTPS; ask its owner"),
        (lambda answer: Answer(302, headers={"Location": "file:///etc/passwd"}), "which is not HTTPS; ask its owner"),
        (lambda answer: Answer(307, headers={"Location": "?again"}), "is the end of 5 redirects"),
    ],
)
def test_a_blob_that_does_not_come_as_it_should(
    change: Callable[[Answer], Answer], problem: str, registry: OciRegistry, made: Path, tmp_path: Path
) -> None:
    registry.change = changed(layer(made / "layout", "lenet5/1/model.onnx")["digest"], change)
    refused(registry, tmp_path, problem)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda answer: Answer(body=answer.body + b" ", headers=answer.headers), "was changed: its digest is"),
        (lambda answer: Answer(body=b" " * (5 << 20)), "the manifest has more than 4194304 bytes"),
        (lambda answer: Answer(body=b"<html>"), "the manifest is not JSON"),
    ],
)
def test_a_manifest_that_does_not_come_as_it_should(
    change: Callable[[Answer], Answer], problem: str, registry: OciRegistry, tmp_path: Path
) -> None:
    registry.change = changed("/manifests/", change)
    refused(registry, tmp_path, problem)


def test_another_manifest_than_the_digest_that_was_asked_for(registry: OciRegistry, tmp_path: Path) -> None:
    registry.change = changed("/manifests/", lambda answer: Answer(body=answer.body + b" "))
    address = f"oci://{registry.host}/models/lenet5@{registry.top['digest']}"
    refused(registry, tmp_path, "is damaged or was changed: its digest is", address)


def test_blobs_on_another_host_come_without_the_token(
    registry: OciRegistry, authority: Authority, tmp_path: Path
) -> None:
    store = Site(authority, lambda request: registry._answer(Request(request.path, authorized)), "localhost")
    authorized = {"authorization": f"Bearer {registry.TOKEN}"}

    def elsewhere(request: Request, answer: Answer) -> Answer:
        at_blob = "/blobs/" in request.path and answer.status == 200
        return Answer(307, headers={"Location": f"{store.url}{request.path}"}) if at_blob else answer

    registry.change = elsewhere
    try:
        pulled(registry.address, tmp_path / "models")
        assert len(store.requests) > 10
        assert {request.authorization for request in store.requests} == {""}
        pulled(registry.address, tmp_path / "again", credential_hosts=[store.host])
        assert store.requests[-1].authorization == authorized["authorization"]
    finally:
        store.close()


def test_credentials_that_were_left_behind_do_not_come_back(
    registry: OciRegistry, authority: Authority, made: Path, trusted: Path, tmp_path: Path
) -> None:
    """Another host sends the client back to an address of its choice."""
    digest = layer(made / "layout", "lenet5/1/model.onnx")["digest"]
    home = registry.site.url
    other = Site(authority, lambda _: Answer(302, headers={"Location": f"{home}/private"}), "localhost")

    def away(request: Request, answer: Answer) -> Answer:
        gone = digest in request.path and answer.status == 200
        return Answer(302, headers={"Location": f"{other.url}/x"}) if gone else answer

    registry.change = away
    try:
        refused(registry, tmp_path, "wants the authentication|status 40[14]")
        private = [request for request in registry.site.requests if request.path == "/private"]
        assert private
        # The challenge of /private is answered for the blob, not for the other host.
        assert {request.authorization for request in private} == {""}
    finally:
        other.close()


def test_a_certificate_of_nobody_who_is_trusted(
    registry: OciRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path / "other").root))
    refused(registry, tmp_path / "models", "its certificate is not trusted .* SSL_CERT_FILE")


def test_a_registry_that_is_not_there(trusted: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1/v2/x/manifests/1 cannot be read: Connection refused"):
        pull("oci://127.0.0.1:1/x:1", tmp_path, Room())
    with pytest.raises(SourceError, match="its name is unknown"):
        pull("oci://nobody.invalid/x:1", tmp_path, Room())
