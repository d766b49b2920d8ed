"""Whose address counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnserve.access.addresses import is_this_machine, networks, origin

TRUSTED = networks(["10.0.0.0/8", "2001:db8:1::/48"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("ipv4:192.0.2.1:80", None, "192.0.2.1"),
        ("ipv6:%5B2001:db8::1:2%5D:80", None, "2001:db8::/64"),
        ("ipv6:[2001:db8::1:2]:80", None, "2001:db8::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:80", None, "192.0.2.1"),
        ("unix:", None, "unix:"),
        ("", "192.0.2.9", ""),
        # Only a trusted proxy is believed, and only what it wrote itself: the last address.
        ("ipv4:192.0.2.1:80", "192.0.2.9", "192.0.2.1"),
        ("ipv4:10.1.1.1:80", "192.0.2.9", "192.0.2.9"),
        ("ipv4:10.1.1.1:80", "192.0.2.66, 192.0.2.9", "192.0.2.9"),
        ("ipv4:10.1.1.1:80", "192.0.2.66, 192.0.2.9, 10.2.2.2", "192.0.2.9"),
        ("ipv4:10.1.1.1:80", "", "10.1.1.1"),
        ("ipv4:10.1.1.1:80", "nonsense", "10.1.1.1"),
        ("ipv4:10.1.1.1:80", "192.0.2.9, nonsense", "10.1.1.1"),
        ("ipv6:%5B2001:db8:1::5%5D:80", "2001:db8:2:3:4::5", "2001:db8:2:3::/64"),
        ("ipv4:10.1.1.1:80", "10.2.2.2", "10.2.2.2"),
    ],
)
def test_origin(peer: str, forwarded: str | None, expected: str) -> None:
    assert origin(peer, forwarded, TRUSTED) == expected


@given(st.text(), st.text())
def test_any_text_has_an_origin(peer: str, forwarded: str) -> None:
    origin(peer, forwarded, TRUSTED)
    assert origin("ipv4:192.0.2.1:80", forwarded, TRUSTED) == "192.0.2.1"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("example.org", False),
        ("::ffff:127.0.0.1", True),
    ],
)
def test_is_this_machine(host: str, expected: bool) -> None:
    assert is_this_machine(host) is expected
