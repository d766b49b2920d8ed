"""Tells `cnnserve health --here` where this server answers health checks.

A container's file system may be read-only, and the port may be chosen by the system. So the URL is in a file in memory
(Linux), which processes of the same user find among the server's open files.
"""

import contextlib
import os
from collections.abc import Iterator

# `cnnserve_client.commands.nearby` looks for it.
NAME = "cnnserve-listening"


@contextlib.contextmanager
def announced(url: str) -> Iterator[None]:
    """Keeps the file open while inside. Does nothing on systems without files in memory."""
    if not hasattr(os, "memfd_create"):
        yield
        return
    descriptor = os.memfd_create(NAME)
    try:
        os.write(descriptor, url.encode())
        yield
    finally:
        os.close(descriptor)
