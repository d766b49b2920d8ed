"""What the operator allows pages of other origins. `app` needs it before it has imported the web framework."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpSettings:
    """`allowed_hosts`: names under which clients may reach the server (None: any), with `*` as a wildcard.

    `cors_origins`: the origins whose pages may read responses, such as `https://example.org`, or `*`. `page`: whether
    the server has a page of its own.
    """

    allowed_hosts: tuple[str, ...] | None = None
    cors_origins: tuple[str, ...] = ()
    page: bool = True
