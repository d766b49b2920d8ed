"""Where the load goes: address, model, TLS and token."""

import argparse
import os
import select
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cnnserve.tools.load.connecting import Wire, tls_context
from cnnserve.tools.load.hpack import STATUSES
from cnnserve.tools.load.http1 import HttpConnection
from cnnserve.tools.load.http2 import Connection
from cnnserve.wire import open_inference_pb2 as oip
from cnnserve_client.errors import InvalidInputError, UnavailableError

from .messages import Messages

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
        wire = Wire(self.grpc, self._context("h2"))
        connection = Connection(wire, self.grpc, method, [body], 1, judge=lambda _: STATUSES[0], headers=headers)
        if (status := _status(connection, timeout_s)) != STATUSES[0]:
            raise OSError(f"{method}: {status}")
        return connection.last_message

    def check_http(self, sent: Messages, timeout_s: float) -> None:
        """Sends one request to the HTTP port. Raises `UnavailableError` if the response is no success."""
        headers = [*sent.headers, *([f"Authorization: Bearer {self.token}"] if self.token else [])]
        try:
            wire = Wire(self.http, self._context("http/1.1"))
            status = _status(HttpConnection(wire, self.http, sent.http_path, sent.bodies, headers), timeout_s)
        except OSError as error:
            status = str(error.strerror or error)
        if status != STATUSES[0]:
            raise UnavailableError(
                f"{self.http} does not answer requests over HTTP ({status}): name the server's HTTP port with "
                "--http-address"
            )

    def _context(self, protocol: str) -> ssl.SSLContext | None:
        if not (self.tls or any(self.files)):
            return None
        roots, certificate, key = (Path(file) if file else None for file in self.files)
        return tls_context([protocol], roots, certificate, key)


def _status(connection: Connection | HttpConnection, timeout_s: float) -> str:
    """Sends one request, returns the status of its response and closes the connection. Raises `OSError`."""
    end = time.monotonic() + timeout_s
    try:
        connection.start(time.perf_counter())
        while not connection.ended:
            connection.flush()
            # Reading never waits if the connection is encrypted.
            if not select.select([connection.wire], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"no response within {timeout_s:g} s")
            connection.receive()
    finally:
        connection.wire.close()
    return connection.ended[0][2]


def checked_address(address: str, flag: str) -> str:
    """Returns an address HOST:PORT. Raises `InvalidInputError` for several addresses and for schemes of gRPC."""
    host, _, port = address.rpartition(":")
    if "," in address or not host or not port.isdecimal():
        raise InvalidInputError(f"{flag} is {address!r}: bench loads one server, expected HOST:PORT")
    return address


def is_here(address: str) -> bool:
    """Returns whether HOST:PORT is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as here:
            here.bind(place)
    except OSError:
        return False
    return True


def http_address(args: argparse.Namespace) -> str:
    """Returns the address of the HTTP port: `--http-address`, else port 8000 of the host of `--address`."""
    if args.http_address:
        return checked_address(args.http_address, "--http-address")
    return f"{args.address.rpartition(':')[0]}:8000"
