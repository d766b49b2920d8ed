"""tritonclient's HTTP clients, sync and asyncio: binary and JSON tensors, compression, classes, errors."""

import pytest

from interop.environments import environment, run_program
from support import RunningServer


@pytest.mark.interop
def test_tritonclient(tiny_server: RunningServer) -> None:
    folder = environment("tritonclient_http", "tritonclient[http]==2.73.0")
    run_program(folder, "tritonclient_http", f"127.0.0.1:{tiny_server.http_port}")
    assert "Traceback" not in tiny_server.log
