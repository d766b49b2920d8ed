"""Parses the bytes of a checkpoint without running its code, and takes the state dict out of its wrappers."""

import argparse
import io
import warnings
from collections.abc import Collection, Sequence
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from cnnserve.repository import other_files
from cnnserve_export.errors import ExportError

StateDict = dict[str, Tensor]

# Keys under which training scripts store the network's state dict, beside the optimizer's and others.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
# Prefixes that DataParallel and torch.compile give to every name, and modules of Lightning to those of their network.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
# Counters, which only training reads; old files lack them.
_COUNTER = ".num_batches_tracked"
# Where a tar archive says that it is one.
_TAR_MAGIC = slice(257, 262)
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
            if other := other_files.named(data[: other_files.HEAD_BYTES]):
                raise ExportError(f"{name} is {other}") from error
            raise ExportError(
                f"{name} is not a safetensors file, or is damaged ({error}); save the state dict again"
            ) from error
    try:
        with warnings.catch_warnings():
            # Warnings about old pickles and TorchScript archives; the errors below say what to do about them.
            warnings.simplefilter("ignore")
            # The flags of a training script, which many scripts save beside the weights, run no code.
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile, pickle and torch raise errors of their own, and torch's text advises to run the file's code.
        raise ExportError(_refusal(data, name, error)) from error


def unwrap(
    content: object, own: Collection[str], name: str, wanted: str | None = None
) -> tuple[StateDict, dict[str, str]]:
    """Returns the state dict in the content of a checkpoint, and what was unwrapped, for the manifest.

    The state dict may be nested under `state_dict`, `model` or `model_state_dict`, or under the only key that holds a
    state dict. `wanted` names another key, or the prefix of the names to take. If no name is one of `own`, the names in
    the network, a prefix of all names is removed, or the only one under which the network is complete.
    Raises `ExportError` if there is no state dict, or more than one.
    """
    keys: list[str] = []
    beside: list[str] = []
    # A pickle may contain itself, so the depth is limited to the number of wrappers.
    for _ in _WRAPPERS:
        if not isinstance(content, dict):
            break
        if wanted is not None and (found := _under(content, wanted)) is not None:
            keys.append(wanted)
            beside += sorted({_head(str(other), wanted) for other in content} - {wanted})
            content, wanted = found, None
        elif (key := _wrapper(content, name, wanted)) is not None:
            keys.append(key)
            beside += [str(other) for other in content if other != key]
            content = content[key]
        else:
            break
    if wanted is not None:
        there = listed([str(key) for key in content]) if isinstance(content, dict) else "no names"
        raise ExportError(f"{name} has nothing under {wanted!r}, which --weights-key names; it has {there}")
    state, removed = _without_prefixes(_flat(content, name), own)
    state, prefix, outside = _complete(state, own, name)
    account = {
        "taken_from": ".".join(keys),
        "left_out": listed([*beside, *outside]),
        "removed_prefix": removed + prefix,
    }
    return state, {field: text for field, text in account.items() if text}


def listed(names: Sequence[str]) -> str:
    """Returns the first ten names and the number of the others."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _refusal(data: bytes, name: str, error: Exception) -> str:
    if other := other_files.named(data[: other_files.HEAD_BYTES]):
        return f"{name} is {other}"
    try:
        objects = sorted(
            {*torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))} - {"argparse.Namespace"}
        )
    except Exception:
        objects = []
    if objects:
        return (
            f"{name} holds more than tensors ({listed(objects)}), and loading them could run code; if you trust the "
            "file, load it where it was made and save the state dict with torch.save(network.state_dict(), FILE)"
        )
    if data[_TAR_MAGIC] == b"ustar":
        return (
            f"{name} is a checkpoint in the .tar format of PyTorch before 0.2, which only a load that may run code can "
            "read; if you trust the file, load it where it was made and save the state dict with "
            "torch.save(network.state_dict(), FILE)"
        )
    kind = "a TorchScript archive" if "TorchScript" in str(error) else "not a PyTorch file, or damaged"
    return f"{name} is {kind}; save a state dict with torch.save(network.state_dict(), FILE)"


def _under(content: dict[Any, Any], wanted: str) -> dict[Any, Any] | None:
    """Returns the entry `wanted` if it is a dictionary, or else all entries with this prefix without it, if any."""
    if isinstance(found := content.get(wanted), dict):
        return found
    prefix = wanted.removesuffix(".") + "."
    below = {key.removeprefix(prefix): value for key, value in content.items() if str(key).startswith(prefix)}
    return below or None


def _head(key: str, wanted: str) -> str:
    """Returns `wanted` for what it names, and the first part of any other name."""
    prefix = wanted.removesuffix(".") + "."
    return wanted if key == wanted or key.startswith(prefix) else key.partition(".")[0]


def _wrapper(content: dict[Any, Any], name: str, wanted: str | None) -> str | None:
    """Returns the key under which the state dict is nested, or None if it is not nested."""
    found = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if not found:
        found = [key for key, value in content.items() if isinstance(key, str) and _is_state_dict(value)]
    if len(found) > 1 and wanted is None:
        raise ExportError(f"{name} holds several state dicts ({', '.join(found)}); choose one with --weights-key")
    return found[0] if found else None


def _is_state_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(item, Tensor) for item in value.values())


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
            f"or under one of {', '.join(_WRAPPERS)}; or name its key with --weights-key"
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


def _complete(state: StateDict, own: Collection[str], name: str) -> tuple[StateDict, str, list[str]]:
    """Returns the entries of the only prefix with all names of the network, the prefix, and what is outside of it."""
    needed = [key for key in own if not key.endswith(_COUNTER)]
    if not needed or any(key in own for key in state):
        return state, "", []
    prefixes = {key.removesuffix(needed[0]) for key in state if key.endswith(f".{needed[0]}")}
    complete = sorted(prefix for prefix in prefixes if all(prefix + key in state for key in needed))
    if len(complete) > 1:
        raise ExportError(
            f"{name} holds the network several times, under {', '.join(complete)}; choose one with --weights-key"
        )
    if not complete:
        return state, "", []
    (prefix,) = complete
    outside = sorted({key.partition(".")[0] for key in state if not key.startswith(prefix)})
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, prefix, outside
