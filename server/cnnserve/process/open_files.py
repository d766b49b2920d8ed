"""The limit of open files: each connection is one of them."""

import resource

# With fewer, libraries fail in native code.
_LEAST = 64
# Beside connections: models being loaded, threads' pipes, the log.
_OTHERS = 32
# On macOS, no process may have more, whatever its limit says.
_MACOS = 10240


def raise_limit() -> int:
    """Raises the limit to the largest that this process may have, and returns it.

    Raises `OSError` if the server cannot work with so few.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = hard if hard != resource.RLIM_INFINITY else 2**20
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except ValueError:
            limit = _MACOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    if limit < _LEAST:
        raise OSError(f"the limit of open files is {limit}, and the server needs {_LEAST}; raise it with ulimit -n")
    return limit


def connections(limit: int, wanted: int) -> int:
    """Returns how many connections of one protocol fit into the limit of open files, at most `wanted`."""
    return min(wanted, (limit - _OTHERS) // 2)
