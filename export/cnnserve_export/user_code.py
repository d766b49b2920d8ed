"""Describes errors of the user's own code, with the line from which they came."""

import os
import traceback
from pathlib import Path

import torch

# Frames of torch, of this package and of the standard library do not show the user's mistake.
_FOREIGN = ("<", *(f"{Path(file).parent}{os.sep}" for file in (str(torch.__file__), __file__, os.__file__)))


def told(error: BaseException) -> str:
    """Returns the type and the first line of an error, and the last line of the user's code that it passed."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name} line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_FOREIGN):
            return f"{text} ({Path(frame.filename).name} line {frame.lineno})"
    return text
