"""The HTTP port, bound before anything that serves it is imported."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """A socket on the port (0: a free one); who connects waits for `HttpServer`. Raises `OSError` where it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)
