"""A Ray cluster of several nodes on this machine, for `bench/ray_serve.py` and `tests/ray`.

Ray's processes listen on every interface, so run it where there is none but loopback:

    unshare -rn sh -c 'ip link set lo up && exec "$@"' -- python bench/ray_serve.py
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

import ray
from ray import serve

_STORE_BYTES = 100 * 2**20
_REGISTER = "cnnserve.transports.ray:register"


@dataclass
class Local:
    """The cluster: its worker nodes with the gRPC port of the proxy on each. The head runs no replicas."""

    cluster: Any
    head_port: int
    workers: list[Any] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    @property
    def head_address(self) -> str:
        """The gRPC address of the proxy on the head."""
        return f"127.0.0.1:{self.head_port}"

    @property
    def addresses(self) -> list[str]:
        """The gRPC addresses of the proxies on the worker nodes."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    def kill(self, number: int) -> None:
        """Ends a worker node as a failing machine would: with SIGKILL."""
        self.cluster.remove_node(self.workers.pop(number), allow_graceful=False)

    def deploy(self, arguments: dict[str, Any], *, wait: bool = True) -> None:
        """Brings the application to these arguments, as `serve deploy` does. Raises `RuntimeError` if that fails."""
        application = {"name": "cnnserve", "import_path": "cnnserve.transports.ray:application", "args": arguments}
        options = {"port": self.head_port, "grpc_servicer_functions": [_REGISTER]}
        config = {"grpc_options": options, "applications": [application | {"route_prefix": "/"}]}
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config), _blocking=wait)

    def status(self) -> Any:
        """Returns what Serve says about the application."""
        return serve.status().applications["cnnserve"]

    def replicas(self, deployment: str) -> dict[str, str]:
        """Returns the node of each RUNNING replica of a deployment, by the replica's id."""
        details = _get_global_client().get_serve_details()["applications"]["cnnserve"]["deployments"]
        found = details.get(deployment, {}).get("replicas", [])
        return {item["replica_id"]: item["node_id"] for item in found if item["state"] == "RUNNING"}


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def local_cluster(cpus: Sequence[float], logs: Path | None = None) -> Iterator[Local]:
    """Yields a cluster with a worker node for each number of `cpus`, with Serve started, and ends all of it."""
    ports = free_ports(len(cpus) + 1)
    http = free_ports(len(cpus) + 1)
    small = {"object_store_memory": _STORE_BYTES, "node_ip_address": "127.0.0.1"}
    if logs is not None:
        small["temp_dir"] = str(logs)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    try:
        local = Local(cluster, ports[0])
        for number, (share, port) in enumerate(zip(cpus, ports[1:], strict=True), start=1):
            variables = {
                "RAY_SERVE_WORKER_PROXY_GRPC_PORT": str(port),
                "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(http[number]),
            }
            local.workers.append(cluster.add_node(num_cpus=share, env_vars=variables, **small))
            local.ports.append(port)
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(
            proxy_location="EveryNode",
            http_options={"port": http[0]},
            grpc_options={"port": ports[0], "grpc_servicer_functions": [_REGISTER]},
        )
        yield local
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
