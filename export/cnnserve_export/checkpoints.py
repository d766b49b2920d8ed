"""Weights in: a network from its architecture, filled from a checkpoint or drawn from a seed.

A checkpoint must fit exactly. Every problem of it is reported at once: a person who brings the wrong file sees that
from a few lists, not from the first of two hundred keys.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnserve_export import files, state_dicts
from cnnserve_export.architectures import Architecture
from cnnserve_export.errors import ExportError
from cnnserve_export.state_dicts import StateDict, listed

SEED = 0
_STEPS = {
    "taken_from": "taken from {!r}",
    "left_out": "without {}",
    "removed_prefix": "prefix {!r} removed",
    "dropped": "{} dropped: only training needs them",
}


def build(architecture: Architecture, class_count: int, seed: int = SEED) -> nn.Module:
    """The network in eval mode with the weights `seed` gives; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.factory(class_count)
        # A person's own may not answer itself.
        network.eval()
        return network


def random_origin(seed: int = SEED) -> dict[str, str]:
    """What the manifest says about weights that were never trained."""
    return {"source": "random", "seed": str(seed)}


def load(
    network: nn.Module, path: Path, training_only: Sequence[str] = (), *, sha256_prefix: str = ""
) -> dict[str, str]:
    """Fills `network` from a checkpoint and returns the manifest's account of it: file, SHA-256, what was unwrapped.

    A checkpoint is a PyTorch file (`.pth`, `.pt`) or a `.safetensors` file; see `state_dicts.unwrap` for its forms.
    Keys that begin with one of `training_only` are dropped. Raises `ExportError` where the file cannot be read, has not
    the SHA-256 that was expected, holds more than tensors, or does not fit; the network is then as it was.
    """
    # Hashed and parsed from the same bytes: the digest cannot be of a file that changed in between.
    data = files.read(path, f"the weights {path}")
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(sha256_prefix):
        raise ExportError(
            f"{path} is not the published file: its SHA-256 begins {sha256[: len(sha256_prefix)]}, expected "
            f"{sha256_prefix}; delete it, and it is downloaded again"
        )
    own = network.state_dict()
    state, unwrapped = state_dicts.unwrap(state_dicts.parse(data, path.name), own, path.name)
    account = {"source": "file", "file": path.name, "sha256": sha256, **unwrapped}
    if dropped := [prefix for prefix in training_only if any(key.startswith(prefix) for key in state)]:
        state = {key: value for key, value in state.items() if not key.startswith(tuple(dropped))}
        account["dropped"] = ", ".join(prefix.rstrip(".") for prefix in dropped)
    _check_fit(own, state, path.name)
    network.load_state_dict({**own, **state})
    return account


def describe(account: dict[str, str]) -> str:
    """One line for a person of what `load` returned."""
    steps = [form.format(account[key]) for key, form in _STEPS.items() if key in account]
    return ", ".join([account["file"], f"SHA-256 {account['sha256'][:12]}…", *steps])


def _check_fit(own: StateDict, state: StateDict, name: str) -> None:
    # Files from before PyTorch 0.4.1 lack these counters, which only training reads.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shared = [key for key in own if key in state]
    misshapen = [key for key in shared if state[key].shape != own[key].shape]
    # float16 becomes float32 as it should; a quantised file's integers would become wrong weights.
    mistyped = [key for key in shared if own[key].is_floating_point() and _kind(state[key]) != "float"]
    if not (missing or unexpected or mistyped) and (counts := _class_counts(own, state, misshapen)):
        file, network = counts
        raise ExportError(
            f"the weights in {name} do not fit this network: the file has {file} classes, use --num-classes {file} "
            f"(the network has {network})"
        )
    shapes = [f"{key} ({_shape(state[key])} in the file, {_shape(own[key])} in the network)" for key in misshapen]
    groups = {
        "missing": missing,
        "unexpected": unexpected,
        "misshapen": shapes,
        "no floating-point values": [f"{key} ({_kind(state[key])})" for key in mistyped],
    }
    problems = [f"\n  {len(keys)} {kind}: {listed(keys)}" for kind, keys in groups.items() if keys]
    if problems:
        raise ExportError(f"the weights in {name} do not fit this network:" + "".join(problems))


def _class_counts(own: StateDict, state: StateDict, misshapen: Sequence[str]) -> tuple[int, int] | None:
    """Classes of the file and of the network, where nothing but the width of one last layer tells them apart."""
    if not all(own[key].dim() and state[key].shape[1:] == own[key].shape[1:] for key in misshapen):
        return None
    counts = {(state[key].shape[0], own[key].shape[0]) for key in misshapen}
    return counts.pop() if len(counts) == 1 else None


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "no values"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "float" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
