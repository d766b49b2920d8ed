"""Binds the HTTP port. This module is separate so that the server can bind before it imports the web framework."""

import socket


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on the port (0: a free one). Raises `OSError` if the port is in use.

    Clients that connect wait until `HttpServer` serves them.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)
