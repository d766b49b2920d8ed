"""Says what a folder is that was given as a model repository and is none."""

from pathlib import Path

from cnnserve.repository import folders
from cnnserve.repository.folders import MANIFEST_FILE, MODEL_FILE, ModelFolder


def problem(root: Path) -> str:
    """Returns what is wrong with a model repository that holds no model folder, and what was meant; "": it holds one.

    Blocks. Raises `ModelLoadFailed` if the folder cannot be read.
    """
    root = root.absolute()
    found = folders.scan(root)
    if any(map(_is_model, found)):
        return ""
    if _is_version(root):
        alone = f"to serve this version alone, use --model NAME={root}"
        return f"{root} is the folder of a version, no model repository; {_meant(root.parent.parent)}, or {alone}"
    if _is_model(folders.model_folder(root)):
        return f"{root} is the folder of a model, no model repository; {_meant(root.parent)}"
    deeper = next((folder.path for folder in found if any(map(_is_model, _models_in(folder.path)))), None)
    text = f"{root} holds no model folder (MODEL/1/{MODEL_FILE})"
    return f"{text}, but {deeper.name} does; {_meant(deeper)}" if deeper else f"{text}; publish a model in it"


def _meant(path: Path) -> str:
    return f"the model repository is probably {path}"


def _models_in(path: Path) -> list[ModelFolder]:
    children = folders.model_folder(path)
    return [] if children.unreadable else folders.scan(path)


def _is_version(path: Path) -> bool:
    return any((path / name).is_file() for name in (MODEL_FILE, MANIFEST_FILE))


def _is_model(folder: ModelFolder) -> bool:
    """Returns whether a folder is one of a model. One that cannot be read may be one."""
    if folder.unreadable or folder.mounted:
        return True
    return any(_is_version(path) for path in folder.versions.values()) or (folder.path / "config.pbtxt").exists()
