"""kserve's REST client: tensors as binary data and as JSON."""

import pytest

from interop.environments import environment, run_program
from support import RunningServer


@pytest.mark.interop
def test_kserve(tiny_server: RunningServer) -> None:
    run_program(environment("kserve", "kserve==0.21.0"), "kserve_http", f"127.0.0.1:{tiny_server.http_port}")
