"""A version's class names: a UTF-8 file with one name a line, in the order of the model's outputs."""

from pathlib import Path

from cnnserve.errors import ModelLoadFailed, reason


def read_labels(file: Path) -> tuple[str, ...]:
    """One label a line; line ends may be CRLF, a byte-order mark and an empty last line are ignored."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ModelLoadFailed(f"label file {file.name} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"label file {file.name} cannot be read: {reason(error)}") from error
    # Not splitlines(): a label may hold a form feed or a Unicode line separator.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(lines[:-1] if lines[-1] == "" else lines)
