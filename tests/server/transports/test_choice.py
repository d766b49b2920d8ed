"""Which gRPC transport serves, and why. `make oldest` runs this with the oldest grpcio of the core transport, too."""

import logging

import grpc
import pytest

from cnnserve.process.admission import MemoryBudget
from cnnserve.process.pressure import MemoryPressure
from cnnserve.transports.calls import PeerLimits
from cnnserve.transports.choice import GrpcTransport, grpc_transport
from cnnserve.transports.core import probe
from cnnserve.transports.core.server import CoreTransport
from cnnserve.transports.grpcio import GrpcioTransport


async def chosen(choice: str) -> GrpcTransport:
    budget = MemoryBudget(2**20)
    return await grpc_transport(
        choice, [], 2**20, budget, MemoryPressure(budget), peers=PeerLimits(), elsewhere=lambda: False
    )


async def test_the_core_of_this_grpcio_does_what_its_transport_relies_on() -> None:
    assert await probe.problem() is None


async def test_auto_takes_the_core_with_a_tested_grpcio(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert isinstance(await chosen("auto"), CoreTransport)
    assert f"gRPC transport: core (grpcio {grpc.__version__})" in caplog.text


@pytest.mark.parametrize("version", ["1.63.2", "1.75.1", "1.81.0", "2.0.0", "strange"])
async def test_auto_takes_aio_with_another_grpcio(
    version: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    assert isinstance(await chosen("auto"), GrpcioTransport)
    assert f"grpcio {version} was not tested with it, only 1.80, 1.85 were" in caplog.text


async def test_a_probe_that_fails_leads_to_aio_or_ends_the_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No call of the probe is in this table, so core answers it with UNIMPLEMENTED.
    monkeypatch.setattr(probe, "_METHODS", ())
    assert isinstance(await chosen("auto"), GrpcioTransport)
    (record,) = caplog.records
    assert "failed the probe" in record.getMessage()
    assert "\n" not in record.getMessage()
    with pytest.raises(OSError, match=r"grpc_transport is core, which does not work here: .* set it to auto or aio"):
        await chosen("core")
    assert isinstance(await chosen("aio"), GrpcioTransport)
