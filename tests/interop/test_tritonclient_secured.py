"""tritonclient with TLS, a client certificate and a token."""

import hashlib
from pathlib import Path

from certificates import Authority, flags
from interop.environments import environment, run_program
from interop.test_tritonclient import REQUIREMENTS
from support import serving, write_version


def test_tritonclient_over_tls_with_a_certificate_and_a_token(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "pem")
    mine = authority.issue("client", "client.example")
    write_version(tmp_path / "models" / "tiny" / "1")
    tokens = tmp_path / "tokens"
    tokens.write_text(f"app infer {hashlib.sha256(b'secret').hexdigest()}\n")
    arguments = [*flags(authority.issue("server"), authority.root), "--tokens-file", str(tokens)]
    with serving(tmp_path / "log", tmp_path / "models", *arguments) as server:
        files = (authority.root, mine.certificate, mine.key)
        folder = environment("tritonclient", *REQUIREMENTS)
        found = run_program(folder, "triton_secured", server.address, *map(str, files), "secret")
    assert found == {
        "live": True,
        "class": 2,
        "without": "StatusCode.UNAUTHENTICATED",
        "wrong": "StatusCode.UNAUTHENTICATED",
        "scope": "StatusCode.PERMISSION_DENIED",
    }
