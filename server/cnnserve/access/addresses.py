"""Which address a client has, and whether an address is this machine."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import unquote

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# One customer of a provider has at least so many bits of IPv6 addresses to itself.
_IPV6_CLIENT_BITS = 64


def origin(peer: str, forwarded: str | None, trusted: Sequence[Network]) -> str:
    """Returns the client's address, an IPv6 one by its /64; `peer` as gRPC writes it, if it is no IP address.

    `forwarded` is the value of X-Forwarded-For. It counts only as far as the addresses are those of `trusted` proxies.
    """
    address = _address(peer)
    if address is None:
        return peer
    hops = (forwarded or "").split(",") if trusted else []
    while hops and _is_in(address, trusted):
        earlier = _parsed(hops.pop().strip())
        if earlier is None:
            break
        address = earlier
    return _text(address)


def origin_of(peername: object) -> str:
    """Returns the address of a socket's peer as `origin` does, "" if it has none."""
    address = _parsed(str(peername[0])) if isinstance(peername, tuple) and peername else None
    return _text(address) if address else ""


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Returns addresses and networks in CIDR notation as networks. Raises `ValueError`."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def is_address(host: str) -> bool:
    """Returns whether `host` is an IP address, not a name."""
    return _parsed(host) is not None


def is_this_machine(host: str) -> bool:
    """Returns whether only programs of this machine reach a server that listens on `host`."""
    if host == "localhost":
        return True
    address = _parsed(host)
    return address is not None and address.is_loopback


def _address(peer: str) -> _Address | None:
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return None
    return _parsed(unquote(rest.rpartition(":")[0]).strip("[]"))


def _text(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, _IPV6_CLIENT_BITS), strict=False))
    return str(address)


def _parsed(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_in(address: _Address, trusted: Sequence[Network]) -> bool:
    return any(address in network for network in trusted)
