"""grpcio-health-checking and grpcio-reflection: health probes, and calls that need only reflection."""

from typing import Any

import pytest

from interop.environments import environment, run_program
from support import RunningServer

REQUIREMENTS = ("grpcio-health-checking==1.85.1", "grpcio-reflection==1.85.1")


@pytest.fixture(scope="module")
def found(interop_server: RunningServer) -> Any:
    return run_program(environment("grpc", *REQUIREMENTS), "standard_services", interop_server.address)


def test_health(found: Any) -> None:
    serving = 1
    assert found["health"] == {"": [serving, serving], "tiny": [serving, serving]}
    assert found["unknown"] == "NOT_FOUND"


def test_reflection_is_enough_to_call(found: Any) -> None:
    assert {"inference.GRPCInferenceService", "cnnserve.v1.Classifier", "grpc.health.v1.Health"} <= set(
        found["services"]
    )
    assert found["platform"] == "onnxruntime_onnx"
