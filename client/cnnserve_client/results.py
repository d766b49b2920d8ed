"""The results of calls, as frozen dataclasses. No protobuf message leaves this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import CnnserveError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Class:
    """One class of a model with its probability, 0 to 1. `label` is empty if the model has no label for the class."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """How long the server worked on a request, in microseconds. Each time ends with the last image of the request."""

    queue_us: int = 0
    """Time in the queue."""
    preprocess_us: int = 0
    """Time to decode, resize and crop the images, including the wait for a decoding thread."""
    compute_us: int = 0
    """Time to assemble the batch and to run it."""
    total_us: int = 0
    """Time from the arrival of the request until its response is complete."""


@dataclass(frozen=True)
class ImageResult:
    """The result of one image: its classes, most probable first, or the error of this image."""

    classes: tuple[Class, ...] = ()
    error: CnnserveError | None = None
    version: str = ""
    """The version of the model that processed the image. Empty if no version did."""

    @property
    def ok(self) -> bool:
        """True if the image was classified, False if it has an error."""
        return self.error is None

    @property
    def top(self) -> Class:
        """The most probable class. Raises `error` if this image has one."""
        if self.error is not None:
            raise self.error
        return self.classes[0]


@dataclass(frozen=True, eq=False)
class Inference:
    """The response to `infer`: an array for the name of each output."""

    model: str
    version: str
    outputs: "Mapping[str, NDArray[Any]]"


@dataclass(frozen=True)
class Classification:
    """The response to one request: one result for each image, in the order of the images."""

    model: str
    version: str
    results: tuple[ImageResult, ...]
    timings: Timings


@dataclass(frozen=True)
class TensorInfo:
    """The input tensor of a model.

    `datatype` is a name of the Open Inference Protocol, such as UINT8. `shape` begins with the batch dimension; -1
    stands for a dimension of any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class VersionInfo:
    """One version of a model. The fields from `input` to `self_test` are filled only while it is READY or UNLOADING."""

    version: str
    state: str
    """LOADING, BUILDING (ONNX Runtime compiles the model for its device), READY, UNLOADING or UNAVAILABLE.

    STATE_N if a newer server sends a state with the number N that this client does not know.
    """
    reason: str = ""
    """Why the version is in this state, as text for people."""
    input: TensorInfo | None = None
    class_count: int = 0
    labels: tuple[str, ...] = ()
    """`labels[i]` is the label of class i. `list_models` leaves this empty."""
    max_batch_size: int = 0
    """The maximum number of images in one request."""
    verified: bool = False
    """True if the files have the digests in the manifest and the self-test with the golden images passed."""
    placement: Mapping[str, int] = field(default_factory=dict)
    """The number of graph nodes on each execution provider."""
    accepts_images: bool = False
    """True if the server knows how to preprocess images for this version, so that `classify` works."""
    architecture: str = ""
    precision: str = ""
    self_test: str = ""
    """The result of the self-test. Without a manifest: whether the output rows of test runs are probabilities."""
    version_labels: tuple[str, ...] = ()
    """Names that a request may use instead of the version number. Filled in every state."""
    contract: int = 0
    """The schema of the manifest, 1 or 2; 0 without a manifest. Filled as `self_test`."""

    @property
    def ready(self) -> bool:
        """True if the version accepts requests."""
        return self.state == "READY"


@dataclass(frozen=True)
class ModelInfo:
    """A model and its versions."""

    name: str
    versions: tuple[VersionInfo, ...]
    reason: str = ""
    """Why the model has no version to serve. Empty if it has one."""
    max_message_bytes: int | None = None
    """The maximum size in bytes of a message to the server. Only `get_model` fills this."""

    @property
    def ready(self) -> bool:
        """True if a version accepts requests."""
        return any(version.ready for version in self.versions)
