"""tritonclient with TLS, a client certificate and a token, over gRPC and over HTTP."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import Authority, flags
from interop.environments import environment, run_program
from interop.test_tritonclient import REQUIREMENTS
from support import RunningServer, serving, write_version


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[RunningServer]:
    """A server that wants a certificate and a token."""
    write_version(tmp_path / "models" / "tiny" / "1")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"app infer {hashlib.sha256(b'secret').hexdigest()}\n")
    arguments = [*flags(authority.issue("server"), authority.root), "--tokens-file", str(tokens)]
    with serving(tmp_path / "log", tmp_path / "models", *arguments) as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pem")


@pytest.fixture
def files(authority: Authority) -> list[str]:
    mine = authority.issue("client", "client.example")
    return [str(file) for file in (authority.root, mine.certificate, mine.key)]


def test_tritonclient_over_tls_with_a_certificate_and_a_token(server: RunningServer, files: list[str]) -> None:
    folder = environment("tritonclient", *REQUIREMENTS)
    assert run_program(folder, "triton_secured", server.address, *files, "secret") == {
        "live": True,
        "class": 2,
        "without": "StatusCode.UNAUTHENTICATED",
        "wrong": "StatusCode.UNAUTHENTICATED",
        "scope": "StatusCode.PERMISSION_DENIED",
    }


@pytest.mark.interop
def test_tritonclient_over_https_with_a_certificate_and_a_token(server: RunningServer, files: list[str]) -> None:
    folder = environment("tritonclient_http", "tritonclient[http]==2.73.0")
    address = f"127.0.0.1:{server.http_port}"
    assert run_program(folder, "tritonclient_https", address, *files, "secret") == {
        "live": True,
        "class": 2,
        "async": 2,
        "aio": 2,
        "without": "401",
        "wrong": "401",
        "scope": "403",
        "no certificate": "refused",
    }
