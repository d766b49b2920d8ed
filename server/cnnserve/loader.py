"""From a version folder to a `Model`: digests, session, settings, labels, self-test.

The part that blocks (`open_version`) runs on a thread; the part that touches the event loop (`start`) is short.
"""

import contextlib
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cnnserve import manifest as manifests
from cnnserve import model_config, selftest
from cnnserve.batcher import DynamicBatcher
from cnnserve.errors import InferenceFailed, InvalidInput, ModelLoadFailed
from cnnserve.instance import ModelInstance, run_rows
from cnnserve.manifest import Manifest
from cnnserve.model import Model, ModelInfo
from cnnserve.model_config import Settings
from cnnserve.preprocessing import Preprocessor
from cnnserve.repository import ModelFolder
from cnnserve.session import NUMPY_TYPES, Session, SessionOptions
from cnnserve.wire.model_config_pb2 import ModelConfig


@dataclass(frozen=True)
class OpenVersion:
    """A version that passed its self-test and has no threads yet."""

    info: ModelInfo
    session: Session
    preprocessor: Preprocessor | None


def open_version(folder: ModelFolder, version: int, cpu_threads: int) -> OpenVersion:
    """Loads and proves one version. Blocks. Raises `ModelLoadFailed` with the reason."""
    path = folder.versions[version]
    config = model_config.read(folder.path)
    manifest = _read_manifest(path)
    session = Session(_model_file(path, config, manifest), _session_options(config, cpu_threads))
    settings = model_config.resolve(folder.name, config, manifest, session.inputs, session.outputs)
    labels = _labels(folder, path, manifest, settings)
    preprocessor = None
    test = None
    try:
        if manifest is None:
            class_count = _probe(session, settings)
        else:
            preprocessor = Preprocessor(manifest.preprocessing, manifest.input)
            class_count = manifest.class_count
            test = selftest.run_golden(session, manifest, preprocessor, path, settings)
    except (InferenceFailed, InvalidInput) as error:
        raise ModelLoadFailed(f"self-test: {error}") from error
    if labels:
        selftest.check_labels(labels, class_count)
    info = ModelInfo(folder.name, version, settings, labels, class_count, manifest, test, session.placement)
    return OpenVersion(info, session, preprocessor)


def start(opened: OpenVersion, decoders: Executor) -> Model:
    """Gives an opened version its instances and its batcher. On the event loop."""
    info = opened.info
    instances = [
        ModelInstance(opened.session, f"{info.name}-{info.version}-{index}", info.settings.fixed_batch)
        for index in range(info.settings.instances)
    ]
    return Model(info, DynamicBatcher(info.settings.policy, instances), opened.preprocessor, decoders)


def _read_manifest(path: Path) -> Manifest | None:
    manifest = manifests.read(path)
    if manifest is not None:
        manifests.verify_files(manifest, path)
    return manifest


def _model_file(path: Path, config: ModelConfig | None, manifest: Manifest | None) -> Path:
    if manifest is not None:
        return path / manifest.onnx.file
    name = (config.default_model_filename if config else "") or model_config.DEFAULT_MODEL_FILE
    if "/" in name or name.startswith("."):
        raise ModelLoadFailed(f"default_model_filename is {name!r}; a plain file name is expected")
    if not (path / name).is_file():
        raise ModelLoadFailed(f"file {name} is missing from the version folder")
    return path / name


def _session_options(config: ModelConfig | None, cpu_threads: int) -> SessionOptions:
    count = model_config.instance_count(config)
    # One instance owns the cores and may spin inside a run; several share them and must not.
    return SessionOptions(threads=max(1, cpu_threads // count), spin=count == 1)


def _labels(folder: ModelFolder, path: Path, manifest: Manifest | None, settings: Settings) -> tuple[str, ...]:
    if manifest is not None:
        return read_labels(path / manifest.labels) if manifest.labels else ()
    if settings.label_file is None:
        return ()
    file = folder.path / settings.label_file
    if not file.resolve().is_relative_to(folder.path.resolve()):
        raise ModelLoadFailed(f"label_filename {settings.label_file!r} is outside the model's folder")
    return read_labels(file)


def read_labels(file: Path) -> tuple[str, ...]:
    """One label a line; line ends may be CRLF, a byte-order mark and an empty last line are ignored."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ModelLoadFailed(f"label file {file.name} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"label file {file.name} cannot be read: {error}") from error
    # Not splitlines(): a label may hold a form feed or a Unicode line separator.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(lines[:-1] if lines[-1] == "" else lines)


def _probe(session: Session, settings: Settings) -> int:
    """Classes of a model without a manifest, from one run on zeros; free sizes other than the batch cannot be tried."""
    shape = session.inputs[0].shape[1:]
    if -1 in shape:
        with contextlib.suppress(ValueError, IndexError):
            return max(session.outputs[0].shape[1:])
        return 0
    zeros = np.zeros((1, *shape), NUMPY_TYPES[session.inputs[0].datatype])
    output = run_rows(session, [zeros], settings.fixed_batch)[0]
    return int(output[0].size)
