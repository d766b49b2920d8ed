"""A checkpoint's bytes -> a state dict: parsed without running anything, taken out of what training wrapped it in."""

import io
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cnnserve_export.errors import ExportError

StateDict = dict[str, Tensor]

# Where training scripts put the network's state dict, beside optimizer, epoch and the like.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
_LISTED = 10


def parse(data: bytes, name: str) -> Any:
    """What a `.safetensors` file or a PyTorch file (any other ending) holds, its tensors on the CPU.

    `name` is the file's, for messages and for its ending. Raises `ExportError` for anything that needs code to load.
    """
    if name.lower().endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ExportError(f"{name} is no safetensors file, or a damaged one: {error}") from error
    try:
        with warnings.catch_warnings():
            # Of old pickles and TorchScript archives: what follows from them is said below.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile, pickle and torch each raise their own; torch's text advises to run the file's code.
        raise ExportError(_refusal(data, name, error)) from error


def unwrap(content: object, own: Collection[str], name: str) -> tuple[StateDict, dict[str, str]]:
    """The state dict in a checkpoint's content, and what was done to get it, for the manifest.

    It may be nested under `state_dict`, `model` or `model_state_dict`. Prefixes of DataParallel and torch.compile are
    removed where no name is one of `own`, the network's. Raises `ExportError`.
    """
    keys: list[str] = []
    beside: list[str] = []
    # A pickle may hold itself: as deep as there are wrappers, no deeper.
    for _ in _WRAPPERS:
        if not isinstance(content, dict) or (key := _wrapper(content, name)) is None:
            break
        keys.append(key)
        beside += [str(other) for other in content if other != key]
        content = content[key]
    account = {"taken_from": ".".join(keys)} if keys else {}
    if beside:
        account["left_out"] = listed(beside)
    state, removed = _without_prefixes(_flat(content, name), own)
    if removed:
        account["removed_prefix"] = removed
    return state, account


def listed(names: Sequence[str]) -> str:
    """The first ten names and how many more there are."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _refusal(data: bytes, name: str, error: Exception) -> str:
    try:
        objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:
        objects = []
    if objects:
        return (
            f"{name} holds more than tensors ({listed(objects)}), and loading that could run code; if you trust the "
            "file, load it where it was made and write torch.save(network.state_dict(), FILE)"
        )
    kind = "a TorchScript archive" if "TorchScript" in str(error) else "no PyTorch file, or a damaged one"
    return f"{name} is {kind}; expected a state dict as torch.save(network.state_dict(), FILE) writes it"


def _wrapper(content: dict[Any, Any], name: str) -> str | None:
    """The key under which the state dict is nested; None where it is not."""
    found = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(found) > 1:
        raise ExportError(f"{name} holds several state dicts ({', '.join(found)}); save the one to export alone")
    return found[0] if found else None


def _flat(content: object, name: str) -> StateDict:
    if not isinstance(content, dict):
        raise ExportError(
            f"{name} holds a {type(content).__name__}, expected a state dict: parameter names with tensors"
        )
    if others := [
        str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)
    ]:
        raise ExportError(
            f"{name} is not a state dict: {listed(others)} hold no tensors; save the network's state_dict() alone, "
            f"or under one of {', '.join(_WRAPPERS)}"
        )
    return content


def _without_prefixes(state: StateDict, own: Collection[str]) -> tuple[StateDict, str]:
    removed = ""
    # A network may itself have a part named `module`: nothing is removed from names that it knows.
    while state and not any(key in own for key in state):
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        removed += prefix
    return state, removed
