"""tritonclient over gRPC: sync, callbacks, asyncio, stream, classes, files as BYTES, shared memory, model control."""

from pathlib import Path
from typing import Any

import pytest

import cnnserve
import cnnserve_client
from interop.conftest import PREFIX
from interop.environments import environment, run_program
from support import RunningServer

REQUIREMENTS = ("tritonclient[grpc]==2.73.0",)


@pytest.fixture(scope="module")
def found(interop_server: RunningServer, pictures: Path) -> Any:
    folder = environment("tritonclient", *REQUIREMENTS)
    return run_program(folder, "triton", interop_server.address, str(pictures), PREFIX)


def test_both_clients_in_one_process(interop_server: RunningServer) -> None:
    """protobuf refuses two files that define the same messages; ours are in a pool of their own."""
    folders = [str(Path(cnnserve_client.__file__).parents[1]), str(Path(cnnserve.__file__).parents[1])]
    found = run_program(environment("tritonclient", *REQUIREMENTS), "both_clients", interop_server.address, *folders)
    assert found == {"cnnserve": [1], "triton": [1]}


def test_health_and_metadata(found: Any) -> None:
    assert found["live"] == [True, True, True]
    assert found["metadata"]["platform"] == "onnxruntime_onnx"
    assert found["metadata"]["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "1"]}]
    assert found["config"]["max_batch_size"] == 8
    assert found["config"]["output"][0]["dims"] == ["3"]
    assert {"classification", "system_shared_memory", "statistics"} <= set(found["extensions"])


def test_inference_in_every_way(found: Any) -> None:
    assert found["infer"] == [[1, 2], "mine"]
    assert found["async"] == [[1], [1]]
    assert found["aio"] == [[[1]] * 4, [[2]] * 3]
    assert found["files"] == [2, 0, 1]
    assert found["shared"] == [1, "probabilities"]
    assert found["regions"] == ["both"]


def test_classes(found: Any) -> None:
    [[first, second]] = found["classes"]
    value, index, label = first.split(":")
    assert (index, label) == ("1", "left")
    assert float(value) > 0.9 > float(second.split(":")[0])


def test_a_stream_keeps_its_order_over_an_error(found: Any) -> None:
    assert found["stream"][:5] + found["stream"][6:] == ["0", "1", "2", "3", "4", "6", "7", "8", "9"]
    assert "model 'nobody' is not in the model repository" in found["stream"][5]


def test_errors_control_and_statistics(found: Any) -> None:
    assert found["error"][0] == "StatusCode.NOT_FOUND"
    assert (found["unloaded"], found["overridden"]) == (False, 3)
    assert found["index"] == ["lenet5 1 READY", "tiny 1 READY"]
    images, requests, runs = found["statistics"]
    # Images: infer 2, classes 1, files 3, callbacks 2, stream 9, shared memory 1. All requests have one image, except
    # infer and files.
    assert (images, requests) == (18, 15)
    assert 1 <= runs <= requests
    assert found["settings"] == [["OFF"], True]
