"""The limits of one client, with a clock of the test's own."""

import asyncio

import pytest

from cnnserve.access.accounts import Account, Accounts, ClientLimits
from cnnserve.access.exposure import warning
from cnnserve.access.guard import Caller, Guard
from cnnserve.access.scopes import Scope
from cnnserve.errors import ClientLimitReached, InvalidInput


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(account: Account, count: int) -> int:
    """How many of so many requests are not refused."""
    done = 0
    for _ in range(count):
        try:
            account.request()
        except ClientLimitReached:
            continue
        done += 1
    return done


def test_a_second_has_its_requests_and_no_more() -> None:
    clock = Clock()
    account = Account("-", ClientLimits(10), clock)
    assert admitted(account, 100) == 10
    clock.now += 0.5
    assert admitted(account, 100) == 5
    clock.now += 1000
    assert admitted(account, 100) == 10


def test_less_than_one_a_second() -> None:
    clock = Clock()
    account = Account("-", ClientLimits(0.5), clock)
    assert admitted(account, 3) == 1
    with pytest.raises(ClientLimitReached, match=r"more than 0\.5 requests per second") as caught:
        account.request()
    assert caught.value.retry_after_ms == 2000
    clock.now += 2
    assert admitted(account, 3) == 1


def test_images_are_counted_while_they_are_in_flight() -> None:
    account = Account("-", ClientLimits(images_in_flight=4))
    with account.images(3):
        with pytest.raises(ClientLimitReached, match="has 3 of at most 4 images in flight"), account.images(2):
            pass
        with account.images(1):
            assert not account.is_idle
    with account.images(4):
        pass
    assert account.is_idle
    with pytest.raises(InvalidInput, match="the request has 5 images, and a client may have 4"), account.images(5):
        pass


async def test_a_stream_waits_instead() -> None:
    account = Account("-", ClientLimits(200))
    assert admitted(account, 300) >= 200
    loop = asyncio.get_running_loop()
    began = loop.time()
    for _ in range(20):
        await account.message()
    assert loop.time() - began > 0.05


def test_accounts_that_use_nothing_are_forgotten() -> None:
    clock = Clock()
    accounts = Accounts(ClientLimits(10), clock)
    busy = accounts.of("busy", "-")
    assert admitted(busy, 10) == 10
    for number in range(10_000):
        accounts.of(str(number), "-")
    assert len(accounts) < 10
    assert accounts.of("busy", "-") is busy


async def test_clients_are_told_apart_by_address_and_ipv6_by_its_64_bits() -> None:
    guard = Guard(limits=ClientLimits(1))
    assert guard.has_work

    def may(peer: str, forwarded: str | None = None) -> bool:
        try:
            guard.admit("x", Scope.INFER, Caller(peer, forwarded=forwarded))
        except ClientLimitReached:
            return False
        return True

    assert may("ipv4:10.0.0.1:1")
    assert not may("ipv4:10.0.0.1:2")
    assert may("ipv4:10.0.0.2:1")
    assert may("ipv6:%5B2001:db8::1%5D:1")
    assert not may("ipv6:%5B2001:db8::2%5D:1")
    assert may("ipv6:%5B2001:db8:0:1::2%5D:1")
    # Nobody but a trusted proxy gets another account by its header.
    assert not may("ipv4:10.0.0.1:1", "192.0.2.1")
    guard.admit("x", Scope.OPEN, Caller("ipv4:10.0.0.1:1"))
    assert guard.refusals.counts == {"RESOURCE_EXHAUSTED": 3}


@pytest.mark.parametrize(
    ("host", "has_tls", "knows_clients", "said"),
    [
        ("127.0.0.1", False, False, []),
        ("0.0.0.0", True, True, []),
        ("0.0.0.0", False, True, ["--tls-certificate", "--insecure"]),
        ("::", True, False, ["--tokens-file", "--insecure"]),
        ("server.example", False, False, ["--tls-certificate", "--tokens-file", "--insecure"]),
    ],
)
def test_what_is_open_is_said(host: str, has_tls: bool, knows_clients: bool, said: list[str]) -> None:
    line = warning(host, has_tls=has_tls, knows_clients=knows_clients)
    assert (line is None) is (not said)
    for flag in ("--tls-certificate", "--tokens-file", "--insecure"):
        assert (flag in (line or "")) is (flag in said)
