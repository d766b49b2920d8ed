"""Says what a folder is that was given as a model repository, or as a model, and is none."""

from pathlib import Path

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository import folders
from cnnserve.repository.folders import MANIFEST_FILE, MODEL_FILE, ModelFolder, Models, NamedModels

# Models that an error lists.
_LISTED = 3


def problem(root: Models) -> str:
    """Returns what is wrong with a model repository that holds no model folder, and what was meant; "": it holds one.

    If there are single models in its place, one of them that is a model is enough. Blocks. Raises `ModelLoadFailed` if
    the folder cannot be read.
    """
    if isinstance(root, NamedModels):
        single = folders.scan(root)
        reasons = [f"model {one.name} is not served: {without_versions(one)}" for one in single]
        return "" if any(map(_is_model, single)) else ". ".join(reasons)
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


def without_versions(folder: ModelFolder) -> str:
    """Returns why a folder that was given as that of a model has no versions, and what to do. Names no path. Blocks."""
    text = "its folder holds no version folder"
    if names := [found.name for found in _models_in(folder.path) if _is_model(found)]:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        return (
            f"{text}, but models ({', '.join(names[:_LISTED])}{more}), so it is a model repository; name it with "
            f"--repository, or name the folder of one model: --model {names[0]}=…/{names[0]}"
        )
    return f"{text}; add one with a number as its name (1, 2, 3, ...)"


def is_single(root: Path) -> bool:
    """Returns whether a folder is that of one model or of one version, and no model repository. Blocks."""
    try:
        repository = any(map(_is_model, folders.scan(root)))
    except ModelLoadFailed:
        return False
    return not repository and (_is_version(root) or _is_model(folders.model_folder(root)))


def _meant(path: Path) -> str:
    return f"the model repository is probably {path}"


def _models_in(path: Path) -> list[ModelFolder]:
    try:
        return folders.scan(path)
    except ModelLoadFailed:
        return []


def _is_version(path: Path) -> bool:
    return any((path / name).is_file() for name in (MODEL_FILE, MANIFEST_FILE))


def _is_model(folder: ModelFolder) -> bool:
    """Returns whether a folder is one of a model. One that cannot be read may be one."""
    if folder.unreadable or folder.mounted:
        return True
    return any(_is_version(path) for path in folder.versions.values()) or (folder.path / "config.pbtxt").exists()
