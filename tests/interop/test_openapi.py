"""schemathesis reads /openapi.json and sends requests that it allows and forbids: the responses match the document."""

import subprocess
from pathlib import Path

import pytest

from interop.environments import environment
from support import RunningServer

# Without "not_a_server_error", because 501 and 503 are regular responses. A 500 would be in the server's log.
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.mark.parametrize("examples", [5, pytest.param(300, marks=pytest.mark.interop)])
def test_every_answer_is_as_the_document_says(tiny_server: RunningServer, tmp_path: Path, examples: int) -> None:
    folder = environment("schemathesis", "schemathesis==4.32.5")
    url = f"http://127.0.0.1:{tiny_server.http_port}/openapi.json"
    flags = ["--no-color", "--seed", "1", "--max-examples", str(examples), "--checks", ",".join(CHECKS)]
    command = [folder / "bin" / "schemathesis", "run", url, *flags, "--phases", "coverage,fuzzing"]
    # schemathesis writes files to its working directory.
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=580, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " failed" not in tiny_server.log
    assert "Traceback" not in tiny_server.log
