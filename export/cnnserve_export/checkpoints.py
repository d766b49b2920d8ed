"""Weights in: a network from its architecture, filled from a state dict or drawn from a seed.

A checkpoint is read with `weights_only=True` and must fit exactly. Every problem of it is reported at once: a person
who brings the wrong file sees that from three lists, not from the first of two hundred keys.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnserve_export.architectures import Architecture
from cnnserve_export.errors import ExportError

SEED = 0
_LISTED = 10


def build(architecture: Architecture, class_count: int, seed: int = SEED) -> nn.Module:
    """The network in eval mode with the weights `seed` gives; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture.factory(class_count).eval()


def random_origin(seed: int = SEED) -> dict[str, str]:
    """What the manifest says about weights that were never trained."""
    return {"source": "random", "seed": str(seed)}


def load(network: nn.Module, path: Path, training_only: Sequence[str] = ()) -> dict[str, str]:
    """Fills `network` from a `.pth`/`.pt` state dict and returns the manifest's account of it, with the file's SHA-256.

    Keys that begin with one of `training_only` are dropped. Raises `ExportError` where the file cannot be read, holds
    more than tensors, or does not fit; the network is then as it was.
    """
    # Hashed and parsed from the same bytes: the digest cannot be of a file that changed in between.
    data = _read(path)
    state = {key: value for key, value in _parse(data, path.name).items() if not key.startswith(tuple(training_only))}
    own = network.state_dict()
    _check_fit(own, state, path.name)
    network.load_state_dict({**own, **state})
    return {"source": "file", "file": path.name, "sha256": hashlib.sha256(data).hexdigest()}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"the weights {path} cannot be read: {error.strerror}") from error


def _parse(data: bytes, name: str) -> dict[str, Tensor]:
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile, pickle and torch each raise their own; a pickle with code in it is refused here, unexecuted.
        raise ExportError(
            f"{name} is not a plain PyTorch state dict ({_first_line(error)}); "
            "write one with torch.save(network.state_dict(), FILE)"
        ) from error
    if not isinstance(state, dict):
        raise ExportError(f"{name} holds a {type(state).__name__}, expected a state dict: parameter names with tensors")
    if others := [
        str(key) for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)
    ]:
        raise ExportError(
            f"{name} is not a flat state dict: {_listed(others)} hold no tensors; save the network's state_dict() alone"
        )
    return state


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], name: str) -> None:
    # Files from before PyTorch 0.4.1 lack these counters, which only training reads.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} ({_shape(state[key])} in the file, {_shape(value)} in the network)"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"\n  {len(keys)} {kind}: {_listed(keys)}" for kind, keys in groups if keys]
    if problems:
        raise ExportError(f"the weights in {name} do not fit this network:" + "".join(problems))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(keys: Sequence[str]) -> str:
    rest = len(keys) - _LISTED
    return ", ".join(keys[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
