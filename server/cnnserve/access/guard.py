"""Decides whether a call may be made, before its message is read: by its scope and by who its client is."""

from collections.abc import Sequence
from dataclasses import dataclass

from cnnserve.access.accounts import Account, Accounts, ClientLimits
from cnnserve.access.addresses import Network, origin
from cnnserve.access.lists import Certificates, Tokens
from cnnserve.access.refusals import Refusals
from cnnserve.access.scopes import Client, Scope
from cnnserve.errors import ClientLimitReached, PermissionDenied, ServingError, Unauthenticated

_BEARER = "bearer"
# If there are more connections with tokens, all are checked again, so that memory stays bounded.
_MOST_KNOWN = 10_000
_LONGEST_TOKEN = 1024
_OUTCOMES: dict[type[ServingError], str] = {
    Unauthenticated: "UNAUTHENTICATED",
    PermissionDenied: "PERMISSION_DENIED",
    ClientLimitReached: "RESOURCE_EXHAUSTED",
}


@dataclass(frozen=True)
class Caller:
    """What a transport knows of a client: its connection, such as "ipv4:127.0.0.1:4711", headers and certificate.

    `authorization` has all headers of that name. `names`: those of a verified certificate, such as "CN:web".
    """

    peer: str
    authorization: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    forwarded: str | None = None


class Guard:
    """Admits calls. Without `tokens` and `certificates` there are no scopes. Use on one event loop."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        certificates: Certificates | None = None,
        trusted_proxies: Sequence[Network] = (),
        limits: ClientLimits = ClientLimits(),  # noqa: B008 - it is frozen
    ) -> None:
        self.refusals = Refusals()
        self._tokens = tokens
        self._certificates = certificates
        self._trusted_proxies = trusted_proxies
        self._limits = limits
        self._accounts = Accounts(limits)
        # Tokens that were compared before, by connection, so that a call costs no hash and no comparisons.
        self._known: dict[tuple[str, str], Client] = {}

    @property
    def has_work(self) -> bool:
        """Whether any call could be refused."""
        return self._knows_clients or self._limits.are_set

    @property
    def _knows_clients(self) -> bool:
        return self._tokens is not None or self._certificates is not None

    @property
    def wants_names(self) -> bool:
        """Whether the names of client certificates matter."""
        return self._certificates is not None

    def renew(self, tokens: Tokens | None, certificates: Certificates | None) -> None:
        """Takes new lists for all calls from now on, also on open connections."""
        self._tokens, self._certificates = tokens, certificates
        self._known.clear()

    def admit(self, what: str, scope: Scope, caller: Caller) -> Account | None:
        """Lets a call of the RPC or route `what` pass, and returns the account of its client; None: of nobody.

        Raises `Unauthenticated` without a valid token or certificate, `PermissionDenied` without the scope, and
        `ClientLimitReached` if the client has sent too many requests.
        """
        if scope is Scope.OPEN:
            return None
        client: Client | None = None
        try:
            if self._knows_clients:
                client = self._client(caller)
                if scope not in client.scopes:
                    raise PermissionDenied(
                        f"the {client.name.partition(' ')[0]} has no scope '{scope.value}', which this call needs; "
                        "ask the operator of the server for it"
                    )
            key = client.name if client else self._origin(caller)
            account = self._accounts.of(key, client.name if client else "")
            account.request()
        except ServingError as error:
            outcome = _OUTCOMES[type(error)]
            self.refusals.note(self._origin(caller), client.name if client else "-", what, outcome)
            raise error
        return account

    def _client(self, caller: Caller) -> Client:
        if caller.authorization and self._tokens is not None:
            return self._bearer(caller, self._tokens)
        if caller.names and self._certificates is not None:
            client = self._certificates.client(caller.names)
            if client is not None:
                return client
            raise Unauthenticated("the client certificate has no scopes on this server; ask its operator for them")
        if self._tokens is not None:
            raise Unauthenticated("the call has no token; send the header 'authorization: Bearer TOKEN'")
        raise Unauthenticated("the call has no client certificate; connect over TLS with a certificate")

    def _bearer(self, caller: Caller, tokens: Tokens) -> Client:
        if len(caller.authorization) > 1:
            raise Unauthenticated("the call has several authorization headers; send one")
        header = caller.authorization[0]
        known = self._known.get((caller.peer, header))
        if known is not None:
            return known
        kind, _, token = header.strip().partition(" ")
        token = token.strip()
        if kind.lower() != _BEARER or not token:
            raise Unauthenticated("the header authorization is not 'Bearer TOKEN'")
        client = tokens.client(token) if len(token) <= _LONGEST_TOKEN else None
        if client is None:
            raise Unauthenticated("the token is not valid on this server; ask its operator for a new one")
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[caller.peer, header] = client
        return client

    def _origin(self, caller: Caller) -> str:
        return origin(caller.peer, caller.forwarded, self._trusted_proxies)
