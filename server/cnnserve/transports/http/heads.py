"""The heads that a connection writes by itself: those of refusals, and those of requests without their proposal."""

import http
from collections.abc import Iterable

from cnnserve.transports.http.answers import encode


def refusal(status: int, text: str) -> bytes:
    """Returns the bytes of a response `{"error": text}` after which the connection closes."""
    body = encode({"error": text})
    head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    return head.encode() + body


def without_upgrade(method: bytes, url: bytes, version: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Returns the head of a request that does not propose another protocol. `headers` have names in lower case."""
    head = [method, b" ", url, b" HTTP/", version, b"\r\n"]
    for name, value in headers:
        if name == b"connection":
            rest = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
            head += [name, b": ", rest, b"\r\n"]
        elif name != b"upgrade":
            head += [name, b": ", value, b"\r\n"]
    return b"".join([*head, b"\r\n"])
