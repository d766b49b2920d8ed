"""`manifest.json`: what a version folder promises, written by the exporter and held to by the server.

One file format, two users: `cnnserve_export.publish` writes it, the server reads it, compares the digest of every file
it names and repeats its golden image before the version becomes READY.
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
    """One file of the version folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Resize:
    """`mode` "shorter" scales the shorter side to `size[0]`; "exact" scales to `size` = (height, width)."""

    mode: Literal["shorter", "exact"]
    size: tuple[int, ...]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to one row of the model's input, in the order of the fields.

    `mean` and `std` are per channel on the 0-to-1 scale. With `normalize` "graph" the network holds them and the row is
    uint8; with "host" the server applies them and the row is float32; with "none" nobody is known to: float rows have
    0-to-1 values, uint8 rows the pixels.
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
    """Name, Open Inference data type and shape of one image's tensor (no batch dimension)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    layout: Literal["NHWC", "NCHW"] | None = None


@dataclass(frozen=True)
class OnnxInfo:
    """What a runtime must be able to read."""

    file: str
    opset: int
    ir_version: int
    precision: Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference of any probability from the reference's, by batch size, and what was allowed.

    Of a version in fp16 or int8 it is that of the fp32 file it was made from.
    """

    batches: dict[str, float]
    tolerance: float
    provider: str
    # What the file was compared with: PyTorch's network, or the file that was imported.
    reference: Literal["PyTorch", "imported file"] = "PyTorch"


@dataclass(frozen=True)
class Golden:
    """One image and its probabilities, which the server must repeat within `tolerance`.

    In fp32 they are the reference's own, in fp16 and int8 what the published file gave on the CPU.
    """

    image: str
    probabilities: tuple[float, ...]
    tolerance: float


@dataclass(frozen=True)
class ImageSet:
    """Images that something was measured on: what they are called, their number, one SHA-256 over all their files'."""

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Calibration:
    """The images an int8 version took its ranges from, and the bits its weights use.

    7: no processor's sums overflow. 8: x86 processors without VNNI may answer otherwise.
    """

    images: ImageSet
    weight_bits: int


@dataclass(frozen=True)
class Agreement:
    """How a version in fp16 or int8 answered beside the fp32 file it was made from, on the exporter's CPU.

    `top1` is the share of images with the same most probable class, `needed` the least that was allowed,
    `seen_in_calibration` how many of the images were calibrated on. The accuracies are over the `labelled` images.
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

    `activation` is what the file's answers went through, `activation_by` who put it there: the network itself, or the
    export behind a network that answers logits.
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
    """The text of manifest.json: sorted as declared, one final newline."""
    return json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"


def read(folder: Path) -> Manifest | None:
    """The manifest of a version folder, or None where there is none.

    Raises `ModelLoadFailed` naming the field that is wrong.
    """
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} cannot be read: {reason(error)}") from error
    return parse(text)


def parse(text: str) -> Manifest:
    """Reads a manifest from its text. Raises `ModelLoadFailed` naming the field that is wrong."""
    try:
        raw = json_text.loads(text)
    except ValueError as error:
        raise ModelLoadFailed(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"{MANIFEST_FILE} holds a {type(raw).__name__}, expected an object")
    if raw.get("schema") != SCHEMA:
        raise ModelLoadFailed(
            f"{MANIFEST_FILE} has schema {raw.get('schema')!r}, this server reads {SCHEMA}; export the model again"
        )
    manifest = _build(Manifest, raw, "")
    _check(manifest)
    return manifest


def parse_preprocessing(text: str, image_shape: tuple[int, ...]) -> Preprocessing:
    """Reads JSON in the words of a manifest's `preprocessing`, for images of height, width, channels.

    Raises `ModelLoadFailed` naming the field that is wrong.
    """
    try:
        raw = json_text.loads(text)
    except ValueError as error:
        raise ModelLoadFailed(f"it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadFailed(f"it holds a {type(raw).__name__}, expected an object")
    known = {item.name for item in dataclasses.fields(Preprocessing)}
    if unknown := sorted(raw.keys() - known):
        raise ModelLoadFailed(f"it has no field {unknown[0]!r}; known: {', '.join(sorted(known))}")
    # Neither is needed in a manifest: null says that there is none.
    spec = _build(Preprocessing, {"resize": None, "crop": None} | raw, "")
    _check_preprocessing(spec, image_shape)
    return spec


def digest(path: Path) -> FileDigest:
    """SHA-256 and size of a file, read in pieces."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(sha256, file.tell())


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Compares every file with its digest. Raises `ModelLoadFailed` naming the first that differs."""
    for name, expected in manifest.files.items():
        if problem := _problem(folder / name, expected):
            raise ModelLoadFailed(problem)


def altered_files(manifest: Manifest, folder: Path) -> dict[str, str]:
    """The files that are not what the manifest says, by name, each with what is wrong."""
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
        # A manifest must not reach outside its folder, nor name what no file can be called.
        if not name or name.startswith(".") or any(sign in "/\\\0" or "\ud800" <= sign <= "\udfff" for sign in name):
            raise ModelLoadFailed(f"{MANIFEST_FILE} names the file {name!r}; plain file names only")
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
        raise ModelLoadFailed(f"{MANIFEST_FILE}: preprocessing.color {spec.color} does not give {channels} channels")
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) != channels:
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.{name} has {len(values)} values for {channels} channels"
            )
    if not all(value > 0 for value in spec.std):
        raise ModelLoadFailed(f"{MANIFEST_FILE}: preprocessing.std must be positive, got {list(spec.std)}")
    if spec.resize is not None:
        expected = 1 if spec.resize.mode == "shorter" else 2
        if len(spec.resize.size) != expected or any(size < 1 for size in spec.resize.size):
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.resize.size {list(spec.resize.size)} does not fit "
                f"mode {spec.resize.mode}, expected {expected} positive size(s)"
            )
        if not spec.resize.antialias:
            raise ModelLoadFailed(
                f"{MANIFEST_FILE}: preprocessing.resize.antialias is false; this server resizes as torchvision does "
                "PIL images, always antialiased"
            )
    result = spec.crop or (spec.resize.size if spec.resize is not None and spec.resize.mode == "exact" else None)
    if result != (height, width):
        raise ModelLoadFailed(
            f"{MANIFEST_FILE}: preprocessing ends at size {result and list(result)}, the input needs {[height, width]}"
        )


def _build(cls: type[_T], raw: Mapping[str, Any], where: str) -> _T:
    """Makes a dataclass from parsed JSON, field by field, strict about types."""
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
