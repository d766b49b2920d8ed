"""Parses the bytes of a checkpoint without running its code, and takes the state dict out of its wrappers."""

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

# Keys under which training scripts store the network's state dict, beside the optimizer's and others.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# Prefixes that DataParallel and torch.compile give to every name.
_PREFIXES = ("module.", "_orig_mod.")
_LISTED = 10


def parse(data: bytes, name: str) -> Any:
    """Returns the content of a `.safetensors` file, or of a PyTorch file (any other suffix), with tensors on the CPU.

    `name` is the name of the file, for its suffix and for errors. Raises `ExportError` if the file is damaged, or if
    loading it would run code.
    """
    if name.lower().endswith(".safetensors"):
        try:
            return safetensors.torch.load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise ExportError(
                f"{name} is not a safetensors file, or is damaged ({error}); save the state dict again"
            ) from error
    try:
        with warnings.catch_warnings():
            # Warnings about old pickles and TorchScript archives; the errors below say what to do about them.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile, pickle and torch raise errors of their own, and torch's text advises to run the file's code.
        raise ExportError(_refusal(data, name, error)) from error


def unwrap(content: object, own: Collection[str], name: str) -> tuple[StateDict, dict[str, str]]:
    """Returns the state dict in the content of a checkpoint, and what was unwrapped, for the manifest.

    The state dict may be nested under `state_dict`, `model` or `model_state_dict`. Prefixes of DataParallel and
    torch.compile are removed if no name is one of `own`, the names in the network.
    Raises `ExportError` if there is no state dict, or more than one.
    """
    keys: list[str] = []
    beside: list[str] = []
    # A pickle may contain itself, so the depth is limited to the number of wrappers.
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
    """Returns the first ten names and the number of the others."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _refusal(data: bytes, name: str, error: Exception) -> str:
    try:
        objects = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:
        objects = []
    if objects:
        return (
            f"{name} holds more than tensors ({listed(objects)}), and loading them could run code; if you trust the "
            "file, load it where it was made and save the state dict with torch.save(network.state_dict(), FILE)"
        )
    kind = "a TorchScript archive" if "TorchScript" in str(error) else "not a PyTorch file, or damaged"
    return f"{name} is {kind}; save a state dict with torch.save(network.state_dict(), FILE)"


def _wrapper(content: dict[Any, Any], name: str) -> str | None:
    """Returns the key under which the state dict is nested, or None if it is not nested."""
    found = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(found) > 1:
        raise ExportError(f"{name} holds several state dicts ({', '.join(found)}); save the one to export alone")
    return found[0] if found else None


def _flat(content: object, name: str) -> StateDict:
    if not isinstance(content, dict):
        raise ExportError(
            f"{name} holds a {type(content).__name__}, expected a state dict; save the network's state_dict()"
        )
    if others := [
        str(key) for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)
    ]:
        raise ExportError(
            f"{name} is not a state dict: {listed(others)} are no tensors; save the network's state_dict() alone, "
            f"or under one of {', '.join(_WRAPPERS)}"
        )
    return content


def _without_prefixes(state: StateDict, own: Collection[str]) -> tuple[StateDict, str]:
    removed = ""
    # A network may itself have a part called `module`, so nothing is removed from names that the network has.
    while state and not any(key in own for key in state):
        prefix = next((prefix for prefix in _PREFIXES if all(key.startswith(prefix) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        removed += prefix
    return state, removed
