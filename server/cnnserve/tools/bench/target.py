"""Where the load goes: address, model, TLS and token."""

import argparse
import os
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cnnserve.tools.load.connecting import Wire, tls_context
from cnnserve.tools.load.hpack import STATUSES
from cnnserve.tools.load.http2 import Connection
from cnnserve.wire import open_inference_pb2 as oip
from cnnserve_client.errors import InvalidInputError

_STATISTICS = "inference.GRPCInferenceService/ModelStatistics"


@dataclass(frozen=True)
class Target:
    """A server as the load processes reach it. `pids` are its processes, as far as they are known.

    `grpc` is "" if the server speaks HTTP only.
    """

    grpc: str
    http: str
    model: str
    version: str
    token: str
    tls: bool
    files: tuple[str | None, str | None, str | None]
    pids: tuple[int, ...] = ()

    def flags(self) -> list[str]:
        """Returns the flags of the load generator for TLS and token."""
        names = ("--root-certificates", "--certificate", "--key")
        words = [word for name, file in zip(names, self.files, strict=True) if file for word in (name, file)]
        return [*words, *(["--tls"] if self.tls else []), *(["--token"] if self.token else [])]

    def environment(self) -> dict[str, str]:
        """Returns the environment of load processes. The token is in it, because all users see command lines."""
        return {**os.environ, **({"CNNSERVE_TOKEN": self.token} if self.token else {})}

    def batches(self, timeout_s: float) -> dict[int, int] | None:
        """Returns how many runs the server has made of each batch size, None if it does not tell."""
        if not self.grpc:
            return None
        request = oip.ModelStatisticsRequest(name=self.model, version=self.version)
        try:
            data = self.call(_STATISTICS, request.SerializeToString(), timeout_s)
        except OSError:
            return None
        statistics = oip.ModelStatisticsResponse.FromString(data).model_stats
        found: dict[int, int] = {}
        for version in statistics:
            for batch in version.batch_stats:
                found[batch.batch_size] = found.get(batch.batch_size, 0) + batch.compute_infer.count
        return found

    def call(self, method: str, body: bytes, timeout_s: float) -> bytes:
        """Returns the response to one call. Raises `OSError` if there is none."""
        headers = [("authorization", f"Bearer {self.token}")] if self.token else []
        wire = Wire(self.grpc, self._context())
        connection = Connection(wire, self.grpc, method, [body], 1, judge=lambda _: STATUSES[0], headers=headers)
        try:
            connection.start(time.perf_counter())
            wire.socket.settimeout(timeout_s)
            while not connection.ended:
                connection.flush()
                connection.receive()
        finally:
            wire.close()
        if connection.ended[0][2] != STATUSES[0]:
            raise OSError(f"{method}: {connection.ended[0][2]}")
        return connection.last_message

    def _context(self) -> ssl.SSLContext | None:
        if not (self.tls or any(self.files)):
            return None
        roots, certificate, key = (Path(file) if file else None for file in self.files)
        return tls_context(["h2"], roots, certificate, key)


def checked_address(address: str, flag: str) -> str:
    """Returns an address HOST:PORT. Raises `InvalidInputError` for several addresses and for schemes of gRPC."""
    host, _, port = address.rpartition(":")
    if "," in address or not host or not port.isdecimal():
        raise InvalidInputError(f"{flag} is {address!r}: bench loads one server, expected HOST:PORT")
    return address


def http_address(args: argparse.Namespace) -> str:
    """Returns the address of the HTTP port: `--http-address`, else port 8000 of the host of `--address`."""
    if args.http_address:
        return checked_address(args.http_address, "--http-address")
    return f"{args.address.rpartition(':')[0]}:8000"
