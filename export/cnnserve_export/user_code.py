"""Errors of a person's own code, told with the line of it that they came from."""

import os
import traceback
from pathlib import Path

import torch

# Frames in these are not where a person looks for their mistake.
_FOREIGN = ("<", *(f"{Path(file).parent}{os.sep}" for file in (str(torch.__file__), __file__, os.__file__)))


def told(error: BaseException) -> str:
    """Type and first line of an error, and the line of the person's own code that it came through last."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name} line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_FOREIGN):
            return f"{text} ({Path(frame.filename).name} line {frame.lineno})"
    return text
