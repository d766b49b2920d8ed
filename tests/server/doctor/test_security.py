"""What `cnnserve doctor` says of certificate, tokens and scopes."""

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from cnnserve.doctor import security
from cnnserve.doctor.findings import Context, Finding, Status


def found(name: str, **settings: Any) -> Finding:
    (finding,) = [one for one in security.check(Context(settings)) if one.name == name]
    return finding


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_certificate_is_valid_for_so_many_days(authority: Authority) -> None:
    for days, status in ((100, Status.OK), (13, Status.WARNING)):
        end = dt.datetime.now(dt.UTC) + dt.timedelta(days=days, hours=1)
        files = authority.issue("server", "127.0.0.1", not_after=end)
        finding = found("TLS certificate", tls_certificate=files.certificate, tls_key=files.key)
        assert finding.status is status
        assert f"is valid for {days} more days" in finding.text


def test_a_certificate_that_cannot_be_used_is_a_problem_with_its_fix(authority: Authority) -> None:
    files, other = authority.issue("server"), authority.issue("other")
    finding = found("TLS certificate", tls_certificate=files.certificate, tls_key=other.key)
    assert finding.status is Status.PROBLEM
    assert finding.text == f"{other.key} is not the key of {files.certificate}"
    assert finding.fix == "write a certificate and the key that belongs to it"


def test_without_a_certificate_there_is_a_note() -> None:
    assert found("TLS certificate").status is Status.NOTE


def test_tokens_and_scopes_are_counted_or_their_bad_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "clients"
    path.write_text(f"web infer {hashlib.sha256(b'x').hexdigest()}\n")
    assert found("tokens", tokens_file=path).text == f"{path} names 1 client"
    path.write_text("web infer\n")
    finding = found("tokens", tokens_file=path)
    assert finding.status is Status.PROBLEM
    assert "line 1: it has 2 fields" in finding.text
    path.write_text("CN:a infer\nCN:b read\n")
    assert found("scopes of certificates", certificate_scopes_file=path).text == f"{path} names 2 clients"
