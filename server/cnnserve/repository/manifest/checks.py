"""What a manifest must hold beside the right types: files with digests, numbers in range, a possible preprocessing."""

import re
from collections.abc import Iterator

from cnnserve.errors import ModelLoadFailed
from cnnserve.repository.folders import MANIFEST_FILE, MAX_VERSION, MODEL_NAME, ModelFolder
from cnnserve.repository.manifest import limits, probabilities
from cnnserve.repository.manifest.fields import InvalidField, shown
from cnnserve.repository.manifest.preprocessing import check_preprocessing
from cnnserve.repository.manifest.schema import SCHEMA, Golden, Manifest

_SHA256 = re.compile(r"[0-9a-f]{64}")
_INT64 = 2**63 - 1


def check(manifest: Manifest) -> None:
    """Raises `InvalidField` if the manifest contradicts itself, or sets a limit that no manifest may set."""
    if not MODEL_NAME.fullmatch(manifest.model):
        raise InvalidField(f"model is {manifest.model[:140]!r}, which is no model name")
    for where, value, low, high in _ranges(manifest):
        if not low <= value <= high:
            raise InvalidField(f"{where} is {_number(value)}, expected {low:g} to {high:g}")
    _check_files(manifest)
    _check_golden(manifest)
    _check_tensors(manifest)


def check_place(manifest: Manifest, model: str, version: int) -> None:
    """Raises `ModelLoadFailed` if a manifest is in the folder of another model or version than it names."""
    if (manifest.model, manifest.version) != (model, version):
        raise ModelLoadFailed(
            f"{MANIFEST_FILE} is that of model {manifest.model} version {manifest.version}, but the folder is that of "
            f"model {model} version {version}; move the folder back, or publish a copy: cnnserve copy PATH TO"
        )


def check_own_place(manifest: Manifest, folder: ModelFolder, version: int) -> None:
    """Does the same for a version in a model's folder. A name that was given to the folder is an alias."""
    check_place(manifest, manifest.model if folder.mounted or folder.alias else folder.name, version)


def check_contract(manifest: Manifest) -> None:
    """Raises `ModelLoadFailed` if the contract of a signed version is not the newest one."""
    if manifest.schema != SCHEMA:
        raise ModelLoadFailed(
            f"it has contract {manifest.schema}, but a signature counts for contract {SCHEMA} only; publish it again "
            "with cnnserve upgrade, and sign the new version"
        )


def _number(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:
        # JSON has integers that are no floats.
        return shown(value)


def _ranges(manifest: Manifest) -> Iterator[tuple[str, float, float, float]]:
    yield "version", manifest.version, 1, MAX_VERSION
    yield "parameters", manifest.parameters, 0, _INT64
    yield "onnx.opset", manifest.onnx.opset, 0, _INT64
    yield "onnx.ir_version", manifest.onnx.ir_version, 0, _INT64
    yield "class_count", manifest.class_count, 1, limits.MAX_CLASSES
    yield "max_batch_size", manifest.max_batch_size, 1, limits.MAX_BATCH_SIZE
    yield "parity.tolerance", manifest.parity.tolerance, 0, 1
    for size, difference in manifest.parity.batches.items():
        yield f"parity.batches.{size}", difference, 0, 1
    for name, file in manifest.files.items():
        yield f"files.{name}.bytes", file.bytes, 0, _INT64
    if (agreement := manifest.agreement) is not None:
        yield "agreement.top1", agreement.top1, 0, 1
        yield "agreement.needed", agreement.needed, 0, 1
        yield "agreement.largest_difference", agreement.largest_difference, 0, 1


def _check_files(manifest: Manifest) -> None:
    golden = manifest.golden
    named = [manifest.onnx.file, *golden.images, golden.probabilities, manifest.labels]
    needed = {name for name in named if name is not None}
    for name in [*manifest.files, *needed]:
        # A manifest must not name files outside its folder, or names that no file can have.
        if not name or name.startswith(".") or name == MANIFEST_FILE or any(sign in "/\\\0" for sign in name):
            raise InvalidField(f"it names the file {name!r}, expected a file name without a folder or a leading dot")
    if missing := sorted(needed - manifest.files.keys()):
        raise InvalidField(f"it has no digest for {', '.join(missing)}")
    digests = {f"files.{name}.sha256": file.sha256 for name, file in manifest.files.items()}
    if manifest.origin is not None:
        digests["origin.manifest_sha256"] = manifest.origin.manifest_sha256
    for where, sha256 in digests.items():
        if not _SHA256.fullmatch(sha256):
            raise InvalidField(f"{where} is {sha256[:80]!r}, expected 64 hexadecimal digits in lower case")


def _check_golden(manifest: Manifest) -> None:
    golden = manifest.golden
    count = len(golden.images)
    if not 1 <= count <= limits.MAX_GOLDEN_IMAGES or len({*golden.images}) != count:
        raise InvalidField(
            f"golden.images names {count} images, {len({*golden.images})} of them different; "
            f"expected 1 to {limits.MAX_GOLDEN_IMAGES}, all different"
        )
    if golden.probabilities is None:
        # Reads them only to see that they are possible.
        probabilities.values(manifest, golden.inline)
    else:
        size, expected = manifest.files[golden.probabilities].bytes, count * manifest.class_count
        if size != expected * probabilities.BYTES_PER_VALUE:
            raise InvalidField(
                f"files.{golden.probabilities}.bytes is {size}, expected {expected * probabilities.BYTES_PER_VALUE}: "
                f"{probabilities.BYTES_PER_VALUE} for each of {count} golden image(s) and {manifest.class_count} "
                "classes (class_count)"
            )
    _check_tolerances(golden, manifest.onnx.precision)


def _check_tolerances(golden: Golden, precision: str) -> None:
    caps = [("tolerance", golden.tolerance, limits.TOLERANCES[precision])]
    # In schema 1 the logarithms are not compared.
    if golden.probabilities is not None and golden.log_tolerance is None:
        raise InvalidField("golden.log_tolerance is None, expected float")
    if golden.log_tolerance is not None:
        caps.append(("log_tolerance", golden.log_tolerance, limits.LOG_TOLERANCES[precision]))
    for name, value, cap in caps:
        if not 0 < value <= cap:
            raise InvalidField(
                f"golden.{name} is {value:g}, expected more than 0 and at most {cap:g}, the limit of the server for "
                f"{precision}"
            )


def _check_tensors(manifest: Manifest) -> None:
    shape = manifest.input.shape
    if len(shape) != 3 or not all(1 <= size <= limits.MAX_SIDE for size in shape):
        raise InvalidField(f"input.shape is {list(shape)}, expected three sizes from 1 to {limits.MAX_SIDE}")
    if manifest.input.layout is None:
        raise InvalidField("input.layout is missing, expected NHWC or NCHW")
    if manifest.output.shape != (manifest.class_count,):
        raise InvalidField(
            f"output.shape is {list(manifest.output.shape)}, expected {[manifest.class_count]} (class_count)"
        )
    check_preprocessing(manifest.preprocessing, shape if manifest.input.layout == "NHWC" else (*shape[1:], shape[0]))
