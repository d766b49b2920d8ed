"""curl, with the commands of the README."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support import RunningServer, picture

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "--silent", *arguments], check=True, capture_output=True, text=True).stdout


def test_curl(tiny_server: RunningServer, tmp_path: Path) -> None:
    base = f"http://127.0.0.1:{tiny_server.http_port}"
    image, other = tmp_path / "left.png", tmp_path / "bright.png"
    image.write_bytes(picture("left"))
    other.write_bytes(picture("bright"))
    one = json.loads(curl("--data-binary", f"@{image}", f"{base}/v1/models/tiny:classify"))
    assert one["results"][0]["classes"][0]["label"] == "left"
    forms = ("-F", f"image=@{image}", "-F", f"image=@{other}")
    two = json.loads(curl(*forms, f"{base}/v1/models/tiny/versions/1:classify?top_k=1"))
    assert [result["classes"][0]["label"] for result in two["results"]] == ["left", "bright"]
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [255] * 64}
    answer = json.loads(curl("--json", json.dumps({"inputs": [tensor]}), f"{base}/v2/models/tiny/infer"))
    assert answer["outputs"][0]["shape"] == [1, 3]
