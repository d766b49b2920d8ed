"""A person's own network, named as `package.module:factory`: found, and made.

The code behind the name is theirs and is executed, as `python -m` would. Whatever it raises is told with the line it
came from, for the fix is in their file.
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
    """Whether this is meant as `package.module:factory`, not as the name of an architecture."""
    return ":" in text


def short_name(text: str) -> str:
    """What an architecture's model is called by default: its name, or `factory` of `package.module:factory`."""
    return re.split(r"[:.]", text)[-1]


def architecture(reference: str, preprocessing: Preprocessing, class_count: int | None) -> Architecture:
    """The network as an `Architecture`, imported now and made later.

    A class or callable is given nothing, or `class_count` alone where that is not None; a module that is there already
    is taken as it is. Raises `ExportError`.
    """
    make = _factory(reference, class_count)
    return Architecture(reference, lambda _: make(), "your own", class_count=0, preprocessing=preprocessing)


def origin(reference: str) -> dict[str, str]:
    """What the manifest says about weights that the network came with."""
    return {"source": "network", "network": reference}


def check_class_count(found: int, expected: int) -> None:
    """Raises `ExportError` where another number of classes was asked for than is answered; 0: none was."""
    if expected and found != expected:
        raise ExportError(
            f"the network answers {found} classes, --num-classes says {expected}; "
            "let the factory use its argument, or leave the flag out"
        )


def _factory(reference: str, class_count: int | None) -> Callable[[], nn.Module]:
    found = _find(reference)
    _refuse_torchscript(reference, found)
    if isinstance(found, nn.Module):
        if class_count is not None:
            raise ExportError(
                f"{reference} is a network already; --num-classes is for a class or function that makes one"
            )
        return lambda: _checked(reference, found)
    if not callable(found):
        raise ExportError(f"{reference} is of type {type(found).__name__}, expected a torch.nn.Module or its maker")
    arguments = () if class_count is None else (class_count,)
    _check_call(reference, found, arguments)
    return lambda: _make(reference, found, arguments)


def _refuse_torchscript(reference: str, found: object) -> None:
    if isinstance(found, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise ExportError(
            f"{reference} is TorchScript, which torch.onnx.export does not read; give the nn.Module that it was made "
            "from, and its state_dict() as --weights"
        )


def _find(reference: str) -> object:
    if not _REFERENCE.fullmatch(reference):
        hint = ""
        if ".py:" in reference:
            hint = "; write the module, not its file: " + reference.replace(".py:", ":").strip("./").replace("/", ".")
        raise ExportError(f"{reference!r} is not of the form package.module:factory{hint}")
    name, _, path = reference.partition(":")
    # As `python -m` does.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = found = _import(name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            near = ", ".join(_offers(module)) or "none"
            raise ExportError(f"{name} has no {path!r}; classes and functions it defines: {near}")
        found = getattr(found, attribute)
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Else it is a module of theirs that misses another one.
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ExportError(
                f"there is no module {error.name!r}, neither in {Path.cwd()} nor installed; "
                "run the command in the folder that holds it"
            ) from error
        raise ExportError(f"{name} cannot be imported: {told(error)}") from error
    except (Exception, SystemExit) as error:
        raise ExportError(f"{name} cannot be imported: {told(error)}") from error


def _offers(module: object) -> list[str]:
    """Names that could have been meant: defined there, not imported from elsewhere."""
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
        # Some of C have none.
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
        return f"pass --num-classes N where {needed[0]} is that number, or name a function that needs nothing"
    return "write a function that makes the network without arguments, and name that"


def _make(reference: str, found: Callable[..., object], arguments: tuple[int, ...]) -> nn.Module:
    try:
        made = found(*arguments)
    except (Exception, SystemExit) as error:
        call = f"{reference}({', '.join(map(str, arguments))})"
        raise ExportError(f"{call} failed: {told(error)}") from error
    _refuse_torchscript(reference, made)
    if not isinstance(made, nn.Module):
        raise ExportError(f"{reference} made an object of type {type(made).__name__}, expected a torch.nn.Module")
    return _checked(reference, made)


def _checked(reference: str, made: nn.Module) -> nn.Module:
    """The network, once what every export asks of it works: theirs may override all of it."""
    try:
        is_lazy = any(nn.parameter.is_lazy(parameter) for parameter in made.parameters())
        made.eval()
        made.state_dict()
    except (Exception, SystemExit) as error:
        raise ExportError(
            f"{reference}: the network's eval(), parameters() or state_dict() failed: {told(error)}"
        ) from error
    if is_lazy:
        raise ExportError(f"{reference} has lazy layers without a size; run the network once before it is returned")
    return made
