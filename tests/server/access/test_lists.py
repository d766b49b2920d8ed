"""The files of tokens and of certificates: what they say, and what is wrong with them."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.access.lists import AccessError, read_certificates, read_tokens
from cnnserve.access.scopes import Client, Scope


def sha(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def written(folder: Path, *lines: str) -> Path:
    path = folder / "clients"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_tokens_are_found_by_their_bytes(tmp_path: Path) -> None:
    lines = ["# comment", "", f"  web infer,read {sha('one')}", f"prometheus metrics {sha('two')}"]
    tokens = read_tokens(written(tmp_path, *lines))
    assert tokens.client("one") == Client("token web", frozenset({Scope.INFER, Scope.READ}))
    assert tokens.client("two") == Client("token prometheus", frozenset({Scope.METRICS}))
    for wrong in ("", "One", "one ", sha("one"), "\ud800"):
        assert tokens.client(wrong) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f"web infer {sha('1')}", "web"], "line 2: it has 1 fields, expected three: NAME SCOPES SHA256"),
        ([f"web infer, read {sha('1')}"], "line 1: it has 4 fields"),
        ([f"web infer {sha('1')}", "", f"web read {sha('2')}"], "line 3: the name 'web' is on line 1 too"),
        ([f"web infer,wrte {sha('1')}"], "line 1: unknown scope 'wrte'; the scopes are infer, read, metrics, admin"),
        ([f"web open {sha('1')}"], "line 1: unknown scope 'open'"),
        ([f"web infer, {sha('1')}"], "line 1: unknown scope ''"),
        (["web infer 0123"], "line 1: the third field is no SHA-256 of 64 lower-case hexadecimal digits"),
        ([f"web infer {sha('1').upper()}"], "line 1: the third field is no SHA-256"),
        ([f"a/b infer {sha('1')}"], "line 1: the name 'a/b' is not 1 to 64 letters"),
        ([f"web infer {sha('1')}", f"app read {sha('1')}"], "line 2: 'app' has the same token as token web"),
    ],
)
def test_a_bad_line_of_a_tokens_file_is_told(tmp_path: Path, lines: list[str], said: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(AccessError) as caught:
        read_tokens(path)
    assert str(caught.value).startswith(f"{path}, {said}")


def test_certificates_have_names_with_spaces(tmp_path: Path) -> None:
    path = written(tmp_path, "CN:My web app  infer", "URI:spiffe://x/y admin,read", "DNS:a.example metrics")
    certificates = read_certificates(path)
    assert certificates.client(("DNS:b", "CN:My web app")) == Client(
        "certificate CN:My web app", frozenset({Scope.INFER})
    )
    # The first line that fits.
    both = certificates.client(("DNS:a.example", "URI:spiffe://x/y"))
    assert both is not None
    assert both.name == "certificate URI:spiffe://x/y"
    assert certificates.client(()) is None
    assert certificates.client(("CN:my web app", "DNS:My web app")) is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["web infer"], "line 1: expected KIND:NAME SCOPES, where KIND is one of CN, DNS, URI, email, IP"),
        (["CN: infer"], "line 1: expected KIND:NAME SCOPES"),
        (["CN:web"], "line 1: expected KIND:NAME SCOPES"),
        (["CN:web all"], "line 1: unknown scope 'all'"),
        (["CN:web infer", "CN:web read"], "line 2: the name 'CN:web' is on another line too"),
    ],
)
def test_a_bad_line_of_a_certificates_file_is_told(tmp_path: Path, lines: list[str], said: str) -> None:
    path = written(tmp_path, *lines)
    with pytest.raises(AccessError) as caught:
        read_certificates(path)
    assert str(caught.value).startswith(f"{path}, {said}")


@pytest.mark.parametrize("read", [read_tokens, read_certificates])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(AccessError, match=r"nowhere cannot be read: No such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(AccessError, match="cannot be read: Is a directory"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AccessError, match="pipe cannot be read: It is a pipe; name a readable text file"):
        read(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(AccessError, match="binary cannot be read: 'utf-8'"):
        read(tmp_path / "binary")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(AccessError, match="zero has more than 1048576 bytes"):
        read(tmp_path / "zero")


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "clients"
    path.write_text(text, errors="replace")
    for read in (read_tokens, read_certificates):
        # Any other error would fail the test.
        with contextlib.suppress(AccessError):
            read(path)
