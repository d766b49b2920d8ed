"""Builds a network from its architecture, with weights from a checkpoint or random weights from a seed.

A checkpoint must fit exactly. All its problems are reported together, because lists of keys show that a file is the
wrong one, and the first of two hundred keys does not.
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
    """Returns the network in eval mode, with random weights from `seed`; torch's global generator is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.factory(class_count)
        # The eval() of a user's network may return something else.
        network.eval()
        return network


def random_origin(seed: int = SEED) -> dict[str, str]:
    """Returns the manifest's entry for weights that were never trained."""
    return {"source": "random", "seed": str(seed)}


def load(
    network: nn.Module,
    path: Path,
    training_only: Sequence[str] = (),
    *,
    sha256_prefix: str = "",
    key: str | None = None,
) -> dict[str, str]:
    """Fills `network` from a checkpoint and returns the manifest's entry: file, SHA-256 and what was unwrapped.

    The checkpoint is a PyTorch file (`.pth`, `.pt`) or a `.safetensors` file; `state_dicts.unwrap` says in which forms.
    `key` names the entry with the weights, or the prefix of their names. Keys that begin with one of `training_only`
    are dropped.
    Raises `ExportError` if the file cannot be read, has another SHA-256 than `sha256_prefix`, holds more than tensors,
    or does not fit. The network is then unchanged.
    """
    # The digest is that of the bytes that are parsed, even if the file changes in between.
    data = files.read(path, f"the weights {path}")
    sha256 = hashlib.sha256(data).hexdigest()
    if not sha256.startswith(sha256_prefix):
        raise ExportError(
            f"{path} is not the published file: its SHA-256 begins with {sha256[: len(sha256_prefix)]}, not with "
            f"{sha256_prefix}; delete the file, and the next export downloads it again"
        )
    own = network.state_dict()
    state, unwrapped = state_dicts.unwrap(state_dicts.parse(data, path.name), own, path.name, key)
    account = {"source": "file", "file": path.name, "sha256": sha256, **unwrapped}
    if dropped := [prefix for prefix in training_only if any(key.startswith(prefix) for key in state)]:
        state = {key: value for key, value in state.items() if not key.startswith(tuple(dropped))}
        account["dropped"] = ", ".join(prefix.rstrip(".") for prefix in dropped)
    _check_fit(own, state, path.name)
    network.load_state_dict({**own, **state})
    return account


def describe(account: dict[str, str]) -> str:
    """Returns one line for the user about the entry that `load` returned."""
    steps = [form.format(account[key]) for key, form in _STEPS.items() if key in account]
    return ", ".join([account["file"], f"SHA-256 {account['sha256'][:12]}…", *steps])


def _check_fit(own: StateDict, state: StateDict, name: str) -> None:
    # Files from before PyTorch 0.4.1 lack these counters, which only training reads.
    missing = [key for key in own if key not in state and not key.endswith(".num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shared = [key for key in own if key in state]
    misshapen = [key for key in shared if state[key].shape != own[key].shape]
    # float16 values become float32 values, as they should. Integers of a quantised file would become wrong weights.
    mistyped = [key for key in shared if own[key].is_floating_point() and _kind(state[key]) != "float"]
    if not (missing or unexpected or mistyped) and (counts := _class_counts(own, state, misshapen)):
        file, network = counts
        raise ExportError(
            f"the weights in {name} do not fit this network: the file has {file} classes, the network has {network}; "
            f"pass --num-classes {file}"
        )
    shapes = [f"{key} ({_shape(state[key])} in the file, {_shape(own[key])} in the network)" for key in misshapen]
    groups = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "without floating-point values": [f"{key} ({_kind(state[key])})" for key in mistyped],
    }
    problems = [f"\n  {len(keys)} {kind}: {listed(keys)}" for kind, keys in groups.items() if keys]
    if problems:
        raise ExportError(
            f"the weights in {name} do not fit this network; give a file of this architecture:" + "".join(problems)
        )


def _class_counts(own: StateDict, state: StateDict, misshapen: Sequence[str]) -> tuple[int, int] | None:
    """Returns the numbers of classes of file and network if nothing else differs, else None."""
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
