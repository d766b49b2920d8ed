"""`manifest.json` of a version: preprocessing, digests, parity and golden image. The exporter writes, the server reads.

`cnnserve_export.publish` writes the file. The server compares the digest of every file that it names and repeats its
golden image before the version becomes READY.
"""

import contextlib
import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from cnnserve import json_text
from cnnserve.errors import ModelLoadFailed, reason

MANIFEST_FILE = "manifest.json"
SCHEMA = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class FileDigest:
    """Digest and size of one file of the version folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Resize:
    """How an image is resized: "shorter" scales the shorter side to `size[0]`, "exact" to `size` = (height, width).

    Sizes are in pixels.
    """

    mode: Literal["shorter", "exact"]
    size: tuple[int, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a decoded image to one row of the model's input, in the order of the fields.

    Only `exif_orientation` comes out of order: it turns the image upright first. `mean` and `std` are per channel, for
    pixels of 0 to 1. With `normalize` "graph" the network applies them, and rows have the pixels as uint8. With "host"
    the server applies them, and rows have floats. With "none" nothing is known to apply them: rows of floats have
    values of 0 to 1, rows of uint8 have the pixels.
    """

    color: Literal["RGB", "BGR", "L"]
    resize: Resize | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalize: Literal["graph", "host", "none"]
    exif_orientation: bool = True


@dataclass(frozen=True)
class TensorInfo:
    """Name, data type (of the Open Inference Protocol) and shape of one row of a tensor, without batch dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    layout: Literal["NHWC", "NCHW"] | None = None


@dataclass(frozen=True)
class OnnxInfo:
    """The ONNX file and what a runtime must support to run it: operator set, IR version and precision."""

    file: str
    opset: int
    ir_version: int
    precision: Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference of a probability from the reference, by batch size, and its tolerance.

    In an fp16 or int8 version it belongs to the fp32 file from which the version was made.
    """

    batches: dict[str, float]
    tolerance: float
    provider: str
    # The file was compared with the network in PyTorch, or with the imported file.
    reference: Literal["PyTorch", "imported file"] = "PyTorch"


@dataclass(frozen=True)
class Golden:
    """The golden image and its probabilities, which the self-test must repeat within `tolerance`.

    In fp32 they come from the reference, in fp16 and int8 from the published file on the exporter's CPU.
    """

    image: str
    probabilities: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class ImageSet:
    """Images of a measurement: their name, their number, and one SHA-256 over the sorted SHA-256 of all their files."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """The images from which the ranges of an int8 version were computed, and the number of bits of its weights.

    With 7 bits, sums cannot overflow on any processor. With 8 bits, x86 processors without VNNI may compute other
    probabilities.
    """

    images: ImageSet
    weight_bits: int


@dataclass(frozen=True)
class Agreement:
    """An fp16 or int8 version compared with the fp32 file from which it was made, on the exporter's CPU.

    `top1` is the share of images with the same most probable class, `needed` the smallest share allowed,
    `seen_in_calibration` the number of these images that were also used for calibration, and `largest_difference` that
    of any probability. The accuracies are over the `labelled` images.
    """

    images: ImageSet
    top1: float
    needed: float
    largest_difference: float
    calibration: Calibration | None = None
    seen_in_calibration: int = 0
    labelled: int = 0
    accuracy: float | None = None
    fp32_accuracy: float | None = None


@dataclass(frozen=True)
class Manifest:
    """The contract between an exported version and the server that runs it.

    `activation`: "softmax" if the file returns probabilities, "none" if it returns logits. `activation_by`: whether the
    network itself contains the softmax, or the export added it.
    """

    model: str
    version: int
    architecture: str
    parameters: int
    onnx: OnnxInfo
    input: TensorInfo
    output: TensorInfo
    activation: Literal["softmax", "none"]
    class_count: int
    labels: str | None
    max_batch_size: int
    preprocessing: Preprocessing
    golden: Golden
    parity: Parity
    weights: dict[str, str]
    files: dict[str, FileDigest]
    producer: dict[str, str] = field(default_factory=dict)
    activation_by: Literal["export", "network"] = "export"
    agreement: Agreement | None = None
    schema: int = SCHEMA


def to_json(manifest: Manifest) -> str:
    """Returns the text of manifest.json: the fields in the order of their declaration, and one newline at the end."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read(folder: Path) -> Manifest | None:
    """Returns the manifest of a version folder, or None if it has none.

    Raises `ModelLoadFailed` with the field that is wrong.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} cannot be read: {reason(error)}") from error
    return parse(text)


def parse(text: str) -> Manifest:
    """Returns the manifest that `text` contains. Raises `ModelLoadFailed` with the field that is wrong."""
    try:
        raw = json_text.loads(text)
    except ValueError as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"{MANIFEST_FILE} holds a {type(raw).__name__}, expected a JSON object")
    if raw.get("schema") != SCHEMA:
        raise ModelLoadFailed(
            f"{MANIFEST_FILE} has schema {raw.get('schema')!r}, this server reads {SCHEMA}; export the model again"
        )
    manifest = _build(Manifest, raw, "")
    _check(manifest)
    return manifest


def parse_preprocessing(text: str, image_shape: tuple[int, ...]) -> Preprocessing:
    """Returns the preprocessing that JSON with the fields of a manifest's `preprocessing` describes.

    `image_shape`: height, width and channels of the model's input. Raises `ModelLoadFailed` with the field that is
    wrong.
    """
    try:
        raw = json_text.loads(text)
    except ValueError as error:
        raise ModelLoadFailed(f"it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"it holds a {type(raw).__name__}, expected a JSON object")
    known = {item.name for item in dataclasses.fields(Preprocessing)}
    if unknown := sorted(raw.keys() - known):
        raise ModelLoadFailed(f"it has no field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    # In a manifest both fields are required and null means none. In this text people may leave them out.
    spec = _build(Preprocessing, {"resize": None, "crop": None} | raw, "")
    _check_preprocessing(spec, image_shape)
    return spec


def digest(path: Path) -> FileDigest:
    """Returns SHA-256 and size of a file. Reads it in pieces, so its size does not matter."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Compares every file with its digest. Raises `ModelLoadFailed` with the first file that differs."""
    for name, expected in manifest.files.items():
        if problem := _problem(folder / name, expected):
            raise ModelLoadFailed(f"{problem}; copy or export the version again")


def altered_files(manifest: Manifest, folder: Path) -> dict[str, str]:
    """Returns the files that differ from the manifest: each name with what is wrong."""
    problems = {name: _problem(folder / name, expected) for name, expected in manifest.files.items()}
    return {name: problem for name, problem in problems.items() if problem}


def _problem(path: Path, expected: FileDigest) -> str | None:
    try:
        if not path.is_file():
            return f"file {path.name} is missing from the version folder"
        size = path.stat().st_size
        if size != expected.bytes:
            return f"file {path.name} has {size} bytes, the manifest says {expected.bytes}"
        actual = digest(path).sha256
    except OSError as error:
        return f"file {path.name} cannot be read: {reason(error)}"
    if actual != expected.sha256:
        return f"file {path.name} was altered: SHA-256 {actual[:12]}…, expected {expected.sha256[:12]}…"
    return None


def _check(manifest: Manifest) -> None:
    needed = {manifest.onnx.file, manifest.golden.image, *([manifest.labels] if manifest.labels else [])}
    for name in [*manifest.files, *needed]:
        # A manifest must not name files outside its folder, or names that no file can have.
        if not name or name.startswith(".") or any(sign in "/\\\0" or "\ud800" <= sign <= "\udfff" for sign in name):
            raise ModelLoadFailed(
                f"{MANIFEST_FILE} names the file {name!r}, expected a file name without a folder or a leading dot"
            )
    if missing := sorted(needed - manifest.files.keys()):
        raise ModelLoadFailed(f"{MANIFEST_FILE} has no digest for {', '.join(missing)}")
    if len(manifest.golden.probabilities) != manifest.class_count:
        raise ModelLoadFailed(
            f"{MANIFEST_FILE}: golden.probabilities has {len(manifest.golden.probabilities)} values, "
            f"class_count is {manifest.class_count}"
        )
    if manifest.max_batch_size < 1:
        raise ModelLoadFailed(f"{MANIFEST_FILE}: max_batch_size is {manifest.max_batch_size}, expected at least 1")
    shape = manifest.input.shape
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise ModelLoadFailed(f"{MANIFEST_FILE}: input.shape is {list(shape)}, expected three positive sizes")
    if manifest.input.layout is None:
        raise ModelLoadFailed(f"{MANIFEST_FILE}: input.layout is missing, expected NHWC or NCHW")
    _check_preprocessing(manifest.preprocessing, shape if manifest.input.layout == "NHWC" else (*shape[1:], shape[0]))


def _check_preprocessing(spec: Preprocessing, image_shape: tuple[int, ...]) -> None:
    height, width, channels = image_shape
    if channels != (1 if spec.color == "L" else 3):
        raise ModelLoadFailed(
            f"{MANIFEST_FILE}: preprocessing.color is {spec.color}, which does not give the {channels} channels of the "
            "input"
        )
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != channels:
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.{name} has {len(values)} values, expected one for each of {channels} "
                "channels"
            )
    if not all(value > 0 for value in spec.std):
        raise ModelLoadFailed(f"{MANIFEST_FILE}: preprocessing.std is {list(spec.std)}, expected positive values")
    if spec.resize is not None:
        expected = 1 if spec.resize.mode == "shorter" else 2
        if len(spec.resize.size) != expected or any(size < 1 for size in spec.resize.size):
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.resize.size is {list(spec.resize.size)}, "
                f"mode {spec.resize.mode} needs {expected} positive size(s)"
            )
        if not spec.resize.antialias:
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.resize.antialias is false, expected true: the server resizes as "
                "torchvision resizes PIL images, always with antialiasing"
            )
    result = spec.crop or (spec.resize.size if spec.resize is not None and spec.resize.mode == "exact" else None)
    if result != (height, width):
        gives = f"gives images of size {list(result)}" if result else "gives images of no fixed size"
        raise ModelLoadFailed(
            f"{MANIFEST_FILE}: preprocessing {gives}, the input needs {[height, width]}; change crop or resize"
        )


def _build(cls: type[_T], raw: Mapping[str, Any], where: str) -> _T:
    """Returns a dataclass built from parsed JSON, field by field. Raises `ModelLoadFailed` for a wrong type."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if item.name in raw:
            values[item.name] = _convert(hints[item.name], raw[item.name], f"{where}{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ModelLoadFailed(f"{MANIFEST_FILE}: field {where}{item.name} is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        items = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(items) == len(value):
            return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(items, value, strict=True)))
    elif origin is dict and isinstance(value, dict):
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    elif dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(typing.cast("type[Any]", hint), value, f"{where}.")
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return value
        raise ModelLoadFailed(f"{MANIFEST_FILE}: {where} is {value!r}, expected one of {', '.join(map(repr, choices))}")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise ModelLoadFailed(f"{MANIFEST_FILE}: {where} is {value!r}, expected {getattr(hint, '__name__', hint)}")
