"""Loads a version: digests, sessions, settings, labels, instances and self-test make a `Model` of a version folder.

`open_version` blocks and runs on a thread of its own. `start` is short and runs on the event loop.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cnnserve.batching.batcher import DynamicBatcher
from cnnserve.batching.drift import Drift
from cnnserve.batching.guard import Guard
from cnnserve.batching.inline import InlineRuns
from cnnserve.batching.instance import ModelInstance
from cnnserve.batching.row_check import RowCheck, RowKind
from cnnserve.config.settings import BUILD_TIMEOUT_S, LOAD_TIMEOUT_S
from cnnserve.datatypes import TensorSpec
from cnnserve.errors import ModelLoadFailed
from cnnserve.images.decoding_pool import DecodingPool
from cnnserve.images.preprocessing import Preprocessor
from cnnserve.model import classification, proving
from cnnserve.model.layout_cache import LayoutCache
from cnnserve.model.retest import Retest, TakeOut
from cnnserve.model.version import Model, ModelInfo
from cnnserve.model_config import execution as executions
from cnnserve.model_config import image_settings, pbtxt, warmup
from cnnserve.model_config.execution import Device
from cnnserve.model_config.in_force import effective, report
from cnnserve.model_config.layout import is_automatic
from cnnserve.model_config.settings import Settings, resolve
from cnnserve.process.admission import MemoryBudget
from cnnserve.repository import manifest as manifests
from cnnserve.repository import onnx_ending, onnx_files, onnx_precision
from cnnserve.repository.folders import MODEL_FILE
from cnnserve.repository.label_file import doubt, read_labels
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.onnx_files import OnnxFiles
from cnnserve.repository.version_files import VersionFiles
from cnnserve.runtime.workers import OnStage, inline_runs, make_workers, open_sessions
from cnnserve.wire.model_config_pb2 import ModelConfig

_log = logging.getLogger(__name__)

# A run may take this long or, if the self-test was slow, this many times its slowest run.
_RUN_TIMEOUT_S = 60.0
_RUN_TIMEOUT_RUNS = 50
# What ModelConfig reports of a model that takes images.
ENCODED_IMAGES = "input as BYTES of shape [n] or [n,1], each element an image file"


@dataclass(frozen=True)
class OpenVersion:
    """A version that passed its self-test. If it is dropped, its instances end.

    `run_limit_s`: the longest time of a run. `retest` repeats the self-test; None: the version has none.
    `counts_drift`: whether its answers are counted for the metrics.
    """

    info: ModelInfo
    instances: tuple[ModelInstance, ...]
    preprocessor: Preprocessor | None
    inline: InlineRuns | None = None
    run_limit_s: float | None = None
    retest: Callable[[], object] | None = None
    counts_drift: bool = True


def _no_stage(_: str) -> None:
    """Ignores the stage."""


def open_version(
    files: VersionFiles,
    cpu_threads: int,
    *,
    engine_cache: Path,
    device: Device = "cpu",
    budget: MemoryBudget | None = None,
    on_stage: OnStage = _no_stage,
    load_timeout_s: float = LOAD_TIMEOUT_S,
    build_timeout_s: float = BUILD_TIMEOUT_S,
    counts_drift: bool = True,
    layouts: LayoutCache | None = None,
) -> OpenVersion:
    """Loads and tests one version from its files. Blocks. Raises `ModelLoadFailed` with the reason.

    `engine_cache`: folder for TensorRT's engines. `device`: device of a model whose config names none. `budget` counts
    the memory of images while they are decoded. `on_stage` is called on this thread with the name of each long stage.
    Nobody waits longer than `load_timeout_s` for a load, or `build_timeout_s` if it builds TensorRT's engines, so the
    self-test ends a run that takes longer. `layouts`: the layouts that were found for models whose config leaves it to
    the server; None: it does not find any.
    """
    folder, version = files.folder, files.version
    config = pbtxt.of(folder, files.shared)
    manifest = read_manifest(files)
    execution = executions.read(config, device)
    model_file = model_file_of(files, config, manifest)
    if manifest is not None and (unnamed := onnx_files.unnamed(files, manifest)):
        _log.warning("model %s version %d: %s", folder.name, version, unnamed)
    with contextlib.closing(onnx_files.load(files, model_file, manifest)) as model:
        files.check_others()
        if manifest is not None:
            _check_graph(manifest, model)
        config, wants_layout = _with_layout(config, execution, layouts, model)
        execution = executions.read(config, device)
        execution, sessions = open_sessions(model, execution, cpu_threads, engine_cache, on_stage)
        names = [] if manifest is not None else [output.name for output in sessions[0].outputs]
        with model.model.open() as file:
            endings = onnx_ending.endings(file, names) if names else {}
    if manifest is not None:
        _check_tensors(manifest, sessions[0].inputs, sessions[0].outputs)
    settings = resolve(
        folder.name, config, manifest, sessions[0].inputs, sessions[0].outputs, left_out=sessions[0].left_out
    )
    labels = _labels(files, manifest, settings)
    preprocessor = _preprocessor(config, manifest, settings, budget)
    workers = make_workers(f"{folder.name}-{version}", execution, sessions, settings)
    warmups = warmup.batches(config, files.shared.read, settings)
    builds = any(gpu.kind == "tensorrt" for gpu in execution.gpus)
    examine = functools.partial(
        proving.examine,
        workers,
        settings,
        manifest=manifest,
        preprocessor=preprocessor,
        # Also if the self-test is repeated: `verify` has read them.
        read=files.read,
        run_limit_s=execution.run_timeout_s or (build_timeout_s if builds else load_timeout_s),
        ending=endings.get(settings.outputs[settings.label_output].name, "unknown"),
    )
    findings = examine(warmups=warmups)
    class_count = manifest.class_count if manifest else findings.probe.class_count if findings.probe else 0
    if labels:
        _check_labels(f"model {folder.name} version {version}", labels, class_count, manifest)
    inline = inline_runs(execution, workers, settings)
    # The event loop runs the smallest models, which is faster than any layout once there are clients.
    wants_layout = wants_layout and (inline is None or is_automatic(config, by_default=False))
    info = ModelInfo(
        folder.name,
        version,
        settings,
        labels,
        class_count,
        manifest,
        findings.self_test,
        findings.probe,
        findings.placement,
        effective(config, settings, execution, model_file.partition("/")[0]),
        folder,
        wants_layout=wants_layout and settings.fixed_batch is None and -1 not in settings.row_shape,
    )
    report(
        info.config,
        verified="true" if findings.self_test else "false",
        activation=info.rows.activation,
        encoded_images=ENCODED_IMAGES if preprocessor else "no",
    )
    return OpenVersion(
        info,
        tuple(worker.instance for worker in workers),
        preprocessor,
        inline,
        execution.run_timeout_s or max(_RUN_TIMEOUT_S, _RUN_TIMEOUT_RUNS * findings.slowest_run_s),
        functools.partial(examine, warmups=(), extra_s=math.inf) if findings.self_test else None,
        counts_drift,
    )


def _with_layout(
    config: ModelConfig | None, execution: executions.Execution, layouts: LayoutCache | None, model: OnnxFiles
) -> tuple[ModelConfig | None, bool]:
    """Returns the config with the layout that was found, or the same config and whether one is to be found."""
    automatic = is_automatic(config, by_default=layouts is not None and layouts.by_default)
    if layouts is None or not automatic or execution.gpus or execution.batch_buckets is not None:
        return config, False
    found = layouts.get(model.digest)
    return (config, True) if found is None else (found.applied(config), False)


def start(opened: OpenVersion, decoders: DecodingPool, take_out: TakeOut) -> Model:
    """Returns the model of an opened version, with its batcher. Call on the event loop.

    `take_out` is called with the reason if the version hangs, or fails when its self-test is repeated.
    """
    info, settings = opened.info, opened.info.settings
    retest = Retest(f"model {info.name} version {info.version}", opened.retest, take_out)
    drift = None
    if opened.counts_drift:
        drift = Drift(
            classification.softmax if info.rows.applies_softmax else None,
            are_distributions=info.rows.applies_softmax or info.rows.kind is RowKind.SOFTMAX,
        )
    guard = Guard(
        RowCheck([output.name for output in settings.outputs], settings.label_output, info.rows.kind, drift),
        opened.run_limit_s,
        on_suspect=retest.suspect,
        on_overdue=take_out,
    )
    batcher = DynamicBatcher(
        settings.policy, opened.instances, free_sizes=-1 in settings.row_shape, inline=opened.inline, guard=guard
    )
    if info.self_test is not None and not info.self_test.complete:
        retest.rest()
    return Model(info, batcher, opened.preprocessor, decoders, drift)


def _preprocessor(
    config: ModelConfig | None, manifest: Manifest | None, settings: Settings, budget: MemoryBudget | None
) -> Preprocessor | None:
    parameters = {name: value.string_value for name, value in config.parameters.items()} if config else {}
    options = image_settings.options(parameters)
    stated = image_settings.read(config, settings)
    if manifest is not None:
        if stated is not None:
            raise ModelLoadFailed(
                f"config.pbtxt: parameter {image_settings.PARAMETER} has no effect, because the manifest states the "
                "preprocessing; remove it"
            )
        return Preprocessor(manifest.preprocessing, manifest.input, options, budget)
    if stated is not None:
        return Preprocessor(*stated, options, budget)
    if given := sorted(image_settings.IMAGE_PARAMETERS & parameters.keys()):
        raise ModelLoadFailed(
            f"config.pbtxt: parameter {given[0]} has no effect, because without a manifest or "
            f"{image_settings.PARAMETER} the model takes no images; remove it"
        )
    return None


def read_manifest(files: VersionFiles) -> Manifest | None:
    """Returns the manifest of a version, None if it has none. Raises `ModelLoadFailed` if it is not its own."""
    manifest = manifests.read_from(files)
    if manifest is not None:
        manifests.check_own_place(manifest, files.folder, files.version)
        if files.signed is not None:
            manifests.check_contract(manifest)
        if files.folder.mounted:
            _log.info(
                "model %s is another name of %s version %d%s, whose folder was given to it",
                files.folder.name,
                manifest.model,
                manifest.version,
                _origin(manifest),
            )
    return manifest


def _check_graph(manifest: Manifest, model: OnnxFiles) -> None:
    """Raises `ModelLoadFailed` if the graph contradicts what the manifest says of its values.

    The precision decides the tolerance of the self-test, and the activation what is made of its rows.
    """
    with model.model.open() as file:
        wrong = onnx_precision.contradiction(manifest.onnx.precision, file) or onnx_ending.contradiction(
            manifest.activation, file, manifest.output.name
        )
    if wrong:
        raise ModelLoadFailed(f"{manifests.MANIFEST_FILE}: {wrong}; export the model again")


def _origin(manifest: Manifest) -> str:
    origin = manifest.origin
    return f" (a copy of {origin.model} version {origin.version})" if origin else ""


def _check_tensors(manifest: Manifest, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raises `ModelLoadFailed` unless the file has the input and the output in the manifest."""
    for kind, stated, specs in (("input", manifest.input, inputs), ("output", manifest.output, outputs)):
        names = ", ".join(spec.name for spec in specs)
        if names != stated.name:
            raise ModelLoadFailed(f"the ONNX file has the {kind} {names!r}, the manifest says {stated.name!r}")
        # Files may leave sizes open, also that of the batch.
        sizes = zip(specs[0].shape[1:], stated.shape, strict=False)
        if specs[0].datatype != stated.datatype or any(own not in (-1, said) for own, said in sizes):
            raise ModelLoadFailed(
                f"the ONNX file's {kind} {stated.name!r} is {specs[0].datatype} {list(specs[0].shape)}, the manifest "
                f"says {stated.datatype} {[-1, *stated.shape]}"
            )


def model_file_of(files: VersionFiles, config: ModelConfig | None, manifest: Manifest | None) -> str:
    """Returns the path of the ONNX file in the version's folder."""
    if manifest is not None:
        if files.folder.asked not in ("", manifest.onnx.file):
            raise ModelLoadFailed(
                f"{files.folder.asked} is not the model of the {manifests.MANIFEST_FILE} beside it, which is "
                f"{manifest.onnx.file}; name that file, or move the other one into a folder of its own"
            )
        return manifest.onnx.file
    name = (config.default_model_filename if config else "") or MODEL_FILE
    if "/" in name or name.startswith("."):
        raise ModelLoadFailed(f"default_model_filename is {name!r}, expected a plain file name")
    # In Triton's layout, a model of several files is a folder.
    return f"{name}/{MODEL_FILE}" if files.is_folder(name) else name


def _labels(files: VersionFiles, manifest: Manifest | None, settings: Settings) -> tuple[str, ...]:
    if manifest is not None:
        return read_labels(manifest.labels, files.read) if manifest.labels else ()
    if settings.label_file is None:
        return ()
    try:
        return read_labels(settings.label_file, files.shared.read)
    except ModelLoadFailed as error:
        raise ModelLoadFailed(f"label_filename {settings.label_file!r}: {error}") from error


def _check_labels(name: str, labels: Sequence[str], class_count: int, manifest: Manifest | None) -> None:
    """Raises `ModelLoadFailed` unless a manifest has one label per class. Logs labels that can hardly be right.

    Without a manifest, a wrong count is only logged, because Triton accepts label files that end early.
    """
    if len(labels) != class_count:
        problem = f"there are {len(labels)} labels for {class_count} classes"
        if manifest is not None:
            raise ModelLoadFailed(f"{problem}; export the model again")
        if class_count:
            _log.warning("%s: %s; check its label file", name, problem)
    if reason := doubt(labels):
        _log.warning("%s: %s; publish a version with correct labels", name, reason)
