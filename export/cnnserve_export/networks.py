"""Finds and makes the user's own network, which a command names as `package.module:factory`.

The code behind the name belongs to the user and is executed, as `python -m` would do. Errors that it raises are
reported with their line, because the user has to change that file.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from cnnserve.repository.manifest import Preprocessing
from cnnserve_export.architectures import Architecture
from cnnserve_export.errors import ExportError
from cnnserve_export.user_code import told

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Returns whether `text` means `package.module:factory`, not the name of a built-in architecture."""
    return ":" in text


def short_name(text: str) -> str:
    """Returns the default name of the model: the architecture's, or `factory` of `package.module:factory`."""
    return re.split(r"[:.]", text)[-1]


def architecture(reference: str, preprocessing: Preprocessing, class_count: int | None) -> Architecture:
    """Returns the user's network as an `Architecture`: its code is imported now, the network is made later.

    A class or a function is called without arguments, or with `class_count` alone if that is not None. If the name
    stands for an `nn.Module`, that is the network.
    Raises `ExportError` if the name leads to no network; `Architecture.factory` does so if the code fails.
    """
    make = _factory(reference, class_count)
    return Architecture(reference, lambda _: make(), "your own network", class_count=0, preprocessing=preprocessing)


def origin(reference: str) -> dict[str, str]:
    """Returns the manifest's entry for weights that the user's network came with."""
    return {"source": "network", "network": reference}


def check_class_count(found: int, expected: int) -> None:
    """Raises `ExportError` if `found`, the number of classes that the network returns, differs from `expected`.

    If `expected` is 0, nothing is checked.
    """
    if expected and found != expected:
        raise ExportError(
            f"the network returns {found} classes, but --num-classes is {expected}; "
            "let the factory use its argument, or leave --num-classes out"
        )


def _factory(reference: str, class_count: int | None) -> Callable[[], nn.Module]:
    found = _find(reference)
    _refuse_torchscript(reference, found)
    if isinstance(found, nn.Module):
        if class_count is not None:
            raise ExportError(
                f"{reference} is a network already, so --num-classes {class_count} has no effect; leave the flag out, "
                "or name a class or function that makes the network"
            )
        return lambda: _checked(reference, found)
    if not callable(found):
        raise ExportError(
            f"{reference} is of type {type(found).__name__}, expected a torch.nn.Module; "
            "name a network, or a class or function that makes one"
        )
    arguments = () if class_count is None else (class_count,)
    _check_call(reference, found, arguments)
    return lambda: _make(reference, found, arguments)


def _refuse_torchscript(reference: str, found: object) -> None:
    if isinstance(found, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise ExportError(
            f"{reference} is TorchScript, which torch.onnx.export does not read; name the nn.Module that it was made "
            "from, and give its state_dict() as --weights"
        )


def _find(reference: str) -> object:
    if not _REFERENCE.fullmatch(reference):
        hint = ""
        if ".py:" in reference:
            hint = "; write the module, not its file: " + reference.replace(".py:", ":").strip("./").replace("/", ".")
        raise ExportError(f"{reference!r} is not of the form package.module:factory{hint}")
    name, _, path = reference.partition(":")
    # `python -m` looks there first, too.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = found = _import(name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            near = ", ".join(_offers(module)) or "none"
            raise ExportError(f"{name} has no {path!r}; name one of its own classes and functions: {near}")
        found = getattr(found, attribute)
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Otherwise the module exists, but a module that it imports does not.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ExportError(
                f"there is no module {error.name!r}, neither in {Path.cwd()} nor installed; "
                "run the command in the folder that holds it"
            ) from error
        raise ExportError(f"{name} cannot be imported: {told(error)}") from error
    except (Exception, SystemExit) as error:
        raise ExportError(f"{name} cannot be imported: {told(error)}") from error


def _offers(module: object) -> list[str]:
    """Returns the names that the user may have meant: networks, and classes and functions defined in the module."""
    own = getattr(module, "__name__", None)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", None) == own))
    )


def _check_call(reference: str, found: Callable[..., object], arguments: tuple[int, ...]) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:
        # Some callables written in C have none.
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        given = "the number of classes alone" if arguments else "no arguments"
        raise ExportError(
            f"{reference}{signature} cannot be called with {given} ({error}); {_fix(signature, arguments)}"
        ) from error


def _needed(signature: inspect.Signature) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in signature.parameters.values() if p.default is p.empty and p.kind not in kinds]


def _fix(signature: inspect.Signature, arguments: tuple[int, ...]) -> str:
    needed = _needed(signature)
    if arguments and not needed:
        return "leave --num-classes out"
    if not arguments and len(needed) == 1:
        return f"if {needed[0]} is the number of classes, pass --num-classes; else name a function without arguments"
    return "name a function that makes the network without arguments"


def _make(reference: str, found: Callable[..., object], arguments: tuple[int, ...]) -> nn.Module:
    try:
        made = found(*arguments)
    except (Exception, SystemExit) as error:
        call = f"{reference}({', '.join(map(str, arguments))})"
        raise ExportError(f"{call} failed: {told(error)}") from error
    _refuse_torchscript(reference, made)
    if not isinstance(made, nn.Module):
        raise ExportError(f"{reference} returned an object of type {type(made).__name__}, expected a torch.nn.Module")
    return _checked(reference, made)


def _checked(reference: str, made: nn.Module) -> nn.Module:
    """Returns the network if the methods that every export calls work: the user's class may override them."""
    try:
        is_lazy = any(nn.parameter.is_lazy(parameter) for parameter in made.parameters())
        made.eval()
        made.state_dict()
    except (Exception, SystemExit) as error:
        raise ExportError(
            f"{reference}: the network's eval(), parameters() or state_dict() failed: {told(error)}"
        ) from error
    if is_lazy:
        raise ExportError(f"{reference} has lazy layers without a size; run the network once before you return it")
    return made
