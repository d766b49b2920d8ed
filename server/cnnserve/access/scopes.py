"""Scopes, and the clients that have them."""

import enum
from dataclasses import dataclass


class Scope(enum.Enum):
    """What an RPC or a route needs. OPEN: nothing; the others can be given to a token or a certificate."""

    OPEN = "open"
    INFER = "infer"
    READ = "read"
    METRICS = "metrics"
    ADMIN = "admin"


GIVEN = tuple(scope.value for scope in Scope if scope is not Scope.OPEN)


@dataclass(frozen=True)
class Client:
    """A client that has shown who it is. `name` is for logs and limits, such as "token web" or "certificate CN:web"."""

    name: str
    scopes: frozenset[Scope]


def scopes_of(text: str) -> frozenset[Scope]:
    """Returns the scopes in a text such as "infer,read". Raises `ValueError` with the name of an unknown scope."""
    names = text.split(",")
    for name in names:
        if name not in GIVEN:
            raise ValueError(f"unknown scope {name!r}; the scopes are {', '.join(GIVEN)}, with commas between them")
    return frozenset(Scope(name) for name in names)
