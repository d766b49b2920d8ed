"""The fields of `manifest.json`, as dataclasses. A field without a default is required."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 2

Library = Literal["pillow", "opencv"]
ResizeMode = Literal["shorter", "exact", "letterbox", "fit"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming", "area"]


@dataclass(frozen=True)
class FileDigest:
    """Digest and size of one file of the version folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Resize:
    """How an image is resized. `size` is in pixels; two sizes are (height, width).

    - "shorter": the ratio is kept. One size is that of the shorter side; two sizes are just covered.
    - "exact": the image is stretched to the size.
    - "letterbox": the ratio is kept, and the image just fits into the size, which is then filled by padding.
    - "fit": the height becomes the first size, and the width follows from the ratio, but it is never more than the
      second size, if there is one. The rest of the width is padded on the right.

    `cnnserve.images.geometry` says how each mode rounds. `library`: whose pixels the result has, bit for bit. Pillow,
    with which torchvision and timm resize, has antialiasing, OpenCV has none.
    """

    mode: ResizeMode
    size: tuple[int, ...]
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    library: Library = "pillow"


@dataclass(frozen=True)
class Pad:
    """How an image that is smaller than its place is padded: `color` has a pixel value of 0 to 255 for each channel.

    The channels are in the order of `Preprocessing.color`. "center" pads both sides alike, with the odd pixel on the
    right and below; "start" keeps the image at the upper left.
    """

    color: tuple[float, ...]
    align: Literal["center", "start"] = "center"


@dataclass(frozen=True)
class Preprocessing:
    """The steps from a decoded image to one row of the model's input, in the order of the fields.

    Only three fields come out of order: `exif_orientation` turns the image upright first, and `pad` and `crop_rounding`
    belong to `resize` and `crop`. A crop keeps the centre, or in mode "fit" the left; a crop that is larger than the
    image pads it, with black if there is no `pad`. `crop_rounding` rounds the left and upper margin of a crop: "even"
    rounds half a pixel to the even number, as torchvision and timm do, "down" rounds it down, as Hugging Face does.

    Pixels of 0 to 255 are multiplied by `scale`; `mean` and `std` are per channel, for the result (0 to 1
    by default). With `normalize` "graph" the network applies all three, and rows have the pixels as uint8. With "host"
    the server applies them, and rows have floats. With "none" nothing is known to apply `mean` and `std`: rows of
    floats have values of 0 to 1, rows of uint8 have the pixels.
    """

    color: Literal["RGB", "BGR", "L"]
    resize: Resize | None
    crop: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalize: Literal["graph", "host", "none"]
    exif_orientation: bool = True
    pad: Pad | None = None
    scale: float = 1 / 255
    crop_rounding: Literal["even", "down"] = "even"

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of every row, or None if images of different sizes give rows of different sizes."""
        if self.crop is not None or self.resize is None:
            return self.crop
        if self.resize.mode == "shorter" or len(self.resize.size) != 2:
            return None
        return self.resize.size[0], self.resize.size[1]


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
    """The golden images and their probabilities, which the self-test must repeat.

    `images` names the image files. `probabilities` names the file of the probabilities: float32, little-endian, one row
    of all classes for each image. `tolerance` and `log_tolerance` are the largest differences allowed of a probability
    and of its logarithm. The probabilities of fp32 come from the reference, those of fp16 and int8 from the published
    file on the exporter's CPU.

    Schema 1 has one image, no `log_tolerance`, and the probabilities in the manifest itself; here they are `inline`, in
    the format of the file. Read both with `golden_probabilities`.
    """

    images: tuple[str, ...]
    probabilities: str | None
    tolerance: float
    log_tolerance: float | None
    inline: bytes = field(default=b"", repr=False, metadata={"json": False})


@dataclass(frozen=True)
class Origin:
    """The version of which a version is a copy: its model, its number, and the SHA-256 of its `manifest.json`."""

    model: str
    version: int
    manifest_sha256: str


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

    `activation`: "softmax" if the file returns probabilities that sum to 1, "sigmoid" if it returns a probability for
    each class by itself, "none" if it returns logits. `activation_by`: whether the network itself contains the
    activation, or the export added it. `origin`: the version from which `cnnserve copy` or `cnnserve upgrade` made this
    one. `schema`: the number of the contract, 1 or 2.
    """

    model: str
    version: int
    architecture: str
    parameters: int
    onnx: OnnxInfo
    input: TensorInfo
    output: TensorInfo
    activation: Literal["softmax", "sigmoid", "none"]
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
    origin: Origin | None = None
    schema: int = SCHEMA


def document(manifest: Manifest) -> dict[str, Any]:
    """Returns the manifest as values of JSON, `schema` first. Golden probabilities of schema 1 are left out."""
    values = dataclasses.asdict(manifest)
    del values["golden"]["inline"]
    return {"schema": values.pop("schema"), **values}


def to_json(manifest: Manifest) -> str:
    """Returns the text of manifest.json in schema 2, with one newline at the end.

    Raises `ValueError` if the manifest was read in schema 1: its golden probabilities have no file.
    """
    if manifest.schema != SCHEMA:
        raise ValueError(f"a manifest of schema {manifest.schema} is not written, only of schema {SCHEMA}")
    return json.dumps(document(manifest), indent=2) + "\n"
