"""Which calls the guard admits, and what it says of the others."""

import hashlib
import logging

import pytest

from cnnserve.access.guard import Caller, Guard
from cnnserve.access.lists import Certificates, Tokens
from cnnserve.access.scopes import Client, Scope
from cnnserve.errors import PermissionDenied, Unauthenticated
from support import until

PEER = "ipv4:10.1.2.3:4711"


def tokens(**scopes: Scope) -> Tokens:
    """Tokens whose text is their name."""
    return Tokens(
        tuple(
            (hashlib.sha256(name.encode()).digest(), Client(f"token {name}", frozenset({scope})))
            for name, scope in scopes.items()
        )
    )


CERTIFICATES = Certificates({"CN:web": Client("certificate CN:web", frozenset({Scope.READ}))})


def bearer(token: str, peer: str = PEER, names: tuple[str, ...] = ()) -> Caller:
    return Caller(peer, (f"Bearer {token}",), names)


async def test_without_lists_all_may_pass() -> None:
    guard = Guard()
    assert not guard.has_work
    guard.admit("x", Scope.ADMIN, Caller(PEER))


async def test_an_empty_list_admits_nobody() -> None:
    for guard in (Guard(Tokens(())), Guard(None, Certificates({}))):
        assert guard.has_work
        with pytest.raises(Unauthenticated):
            guard.admit("x", Scope.READ, bearer("any", names=("CN:any",)))


async def test_a_token_opens_its_scopes_only() -> None:
    guard = Guard(tokens(app=Scope.INFER))
    for scheme in ("Bearer", "bearer", "BEARER"):
        guard.admit("x", Scope.INFER, Caller(PEER, (f"{scheme}  app ",)))
    guard.admit("x", Scope.OPEN, Caller(PEER))
    guard.admit("x", Scope.OPEN, bearer("wrong"))
    for scope in (Scope.READ, Scope.METRICS, Scope.ADMIN):
        with pytest.raises(PermissionDenied, match=f"the token has no scope '{scope.value}'"):
            guard.admit("x", scope, bearer("app"))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ((), "the call has no token; send the header 'authorization: Bearer TOKEN'"),
        (("Bearer",), "is not 'Bearer TOKEN'"),
        (("Bearer ",), "is not 'Bearer TOKEN'"),
        (("Basic app",), "is not 'Bearer TOKEN'"),
        (("app",), "is not 'Bearer TOKEN'"),
        (("Bearer app app",), "the token is not valid"),
        (("Bearer APP",), "the token is not valid"),
        (("Bearer " + "a" * 100_000,), "the token is not valid"),
        (("Bearer app", "Bearer app"), "several authorization headers"),
    ],
)
async def test_whoever_has_no_token_is_told_how_to_send_one(headers: tuple[str, ...], said: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        Guard(tokens(app=Scope.INFER)).admit("x", Scope.INFER, Caller(PEER, headers))
    assert said in str(caught.value)
    assert "app" not in str(caught.value).replace("Bearer TOKEN", "")


async def test_a_known_token_is_known_on_its_connection_only_and_forgotten_with_its_list() -> None:
    guard = Guard(tokens(app=Scope.INFER, other=Scope.READ))
    for _ in range(3):
        guard.admit("x", Scope.INFER, bearer("app"))
        # On the same connection, without the token or with another one.
        with pytest.raises(Unauthenticated):
            guard.admit("x", Scope.INFER, Caller(PEER))
        with pytest.raises(PermissionDenied):
            guard.admit("x", Scope.INFER, bearer("other"))
    guard.renew(tokens(other=Scope.READ), None)
    with pytest.raises(Unauthenticated):
        guard.admit("x", Scope.INFER, bearer("app"))


async def test_a_certificate_has_scopes_and_a_token_comes_first() -> None:
    guard = Guard(tokens(app=Scope.INFER), CERTIFICATES)
    guard.admit("x", Scope.READ, Caller(PEER, names=("CN:web",)))
    guard.admit("x", Scope.INFER, bearer("app", names=("CN:web",)))
    with pytest.raises(PermissionDenied, match="the certificate has no scope 'infer'"):
        guard.admit("x", Scope.INFER, Caller(PEER, names=("CN:web",)))
    with pytest.raises(PermissionDenied, match="the token has no scope 'read'"):
        guard.admit("x", Scope.READ, bearer("app", names=("CN:web",)))
    with pytest.raises(Unauthenticated, match="the token is not valid"):
        guard.admit("x", Scope.READ, bearer("wrong", names=("CN:web",)))
    with pytest.raises(Unauthenticated, match="the client certificate has no scopes"):
        guard.admit("x", Scope.READ, Caller(PEER, names=("CN:other",)))


async def test_without_tokens_only_certificates_count() -> None:
    guard = Guard(None, CERTIFICATES)
    guard.admit("x", Scope.READ, bearer("any", names=("CN:web",)))
    with pytest.raises(Unauthenticated, match="the call has no client certificate"):
        guard.admit("x", Scope.READ, bearer("any"))


async def test_refusals_are_one_line_a_second_and_address(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(tokens(app=Scope.INFER))
    with caplog.at_level(logging.INFO, "cnnserve.audit"):
        for number in range(50):
            for caller in (Caller(PEER), bearer(f"guess{number}", "ipv6:%5B2001:db8::1%5D:1")):
                with pytest.raises(Unauthenticated):
                    guard.admit("s/Method", Scope.INFER, caller)
        with pytest.raises(PermissionDenied):
            guard.admit("s/Method", Scope.ADMIN, bearer("app"))
        assert [record.getMessage() for record in caplog.records] == [
            "refused: who='-' what='s/Method' from=10.1.2.3 outcome=UNAUTHENTICATED count=1",
            "refused: who='-' what='s/Method' from=2001:db8::/64 outcome=UNAUTHENTICATED count=1",
        ]
        caplog.clear()
        await until(lambda: len(caplog.records) == 2)
    assert [record.getMessage() for record in caplog.records] == [
        "refused: who='token app' what='s/Method' from=10.1.2.3 outcome=PERMISSION_DENIED count=50",
        "refused: who='-' what='s/Method' from=2001:db8::/64 outcome=UNAUTHENTICATED count=49",
    ]
    assert guard.refusals.counts == {"UNAUTHENTICATED": 100, "PERMISSION_DENIED": 1}


async def test_refusals_from_very_many_addresses_share_a_line(caplog: pytest.LogCaptureFixture) -> None:
    guard = Guard(tokens(app=Scope.INFER))
    with caplog.at_level(logging.INFO, "cnnserve.audit"):
        for number in range(1000):
            with pytest.raises(Unauthenticated):
                guard.admit("x", Scope.INFER, Caller(f"ipv4:10.0.{number // 256}.{number % 256}:1"))
    assert len(caplog.records) == 101
    assert "from=others" in caplog.records[-1].getMessage()
