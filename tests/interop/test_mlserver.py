"""MLServer's gRPC client: another implementation of the Open Inference Protocol, with other stubs."""

from interop.environments import environment, run_program, slow
from support import RunningServer

pytestmark = slow
REQUIREMENTS = ("mlserver==1.7.1",)


def test_raw_and_typed_tensors_through_its_converters(interop_server: RunningServer) -> None:
    found = run_program(environment("mlserver", *REQUIREMENTS), "mlserver_client", interop_server.address)
    assert (found["live"], found["ready"]) == (True, True)
    assert found["inputs"] == [["image", "UINT8", [-1, 8, 8, 1]]]
    assert found["raw"] == found["typed"] == ["mine", "1", [1, 0]]
