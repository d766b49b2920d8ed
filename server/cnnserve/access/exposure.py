"""What is open to other machines, said in one line when the server starts."""

from cnnserve.access.addresses import is_this_machine


def warning(host: str, *, has_tls: bool, knows_clients: bool) -> str | None:
    """Returns the line for a server that listens on `host`, None if others cannot reach it or nothing is open."""
    if is_this_machine(host) or (has_tls and knows_clients):
        return None
    parts = []
    if not has_tls:
        parts.append("everybody on the way reads requests, responses and tokens (close it with --tls-certificate)")
    if not knows_clients:
        parts.append("everybody who reaches the ports may send requests (close it with --tokens-file)")
    return f"other machines reach {host}: {' and '.join(parts)}; --insecure silences this line"
