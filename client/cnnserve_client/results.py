"""What a call returns. Plain frozen values: no protobuf leaves this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import CnnserveError


@dataclass(frozen=True)
class Class:
    """One class of a model and its probability, 0 to 1. `label` is empty where the model has no labels."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Timings:
    """Where a request's time went on the server, in microseconds. Several images count as their slowest."""

    queue_us: int = 0
    preprocess_us: int = 0
    compute_us: int = 0
    total_us: int = 0


@dataclass(frozen=True)
class ImageResult:
    """One image's answer: its classes, most probable first, or the error that befell this image alone."""

    classes: tuple[Class, ...] = ()
    error: CnnserveError | None = None
    version: str = ""
    """The model's version that answered; empty where none did."""

    @property
    def ok(self) -> bool:
        """True where the image was classified."""
        return self.error is None

    @property
    def top(self) -> Class:
        """The most probable class. Raises this image's own error where it failed."""
        if self.error is not None:
            raise self.error
        return self.classes[0]


@dataclass(frozen=True)
class Classification:
    """One request's answer: one result per image, in the order asked."""

    model: str
    version: str
    results: tuple[ImageResult, ...]
    timings: Timings


@dataclass(frozen=True)
class TensorInfo:
    """A model's input. `datatype` is an Open Inference Protocol word; `shape` is batch first, -1 where free."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class VersionInfo:
    """One version of a model. What follows `reason` is known of a READY version only."""

    version: str
    state: str
    """LOADING, BUILDING, READY, UNLOADING or UNAVAILABLE."""
    reason: str = ""
    """Why the version is in this state, for a person."""
    input: TensorInfo | None = None
    class_count: int = 0
    labels: tuple[str, ...] = ()
    """Label i names class i. Filled by `get_model` only."""
    max_batch_size: int = 0
    """The most images one request may carry."""
    verified: bool = False
    """A manifest vouched for the files, and the golden image was answered right."""
    placement: Mapping[str, int] = field(default_factory=dict)
    """Graph nodes by execution provider."""
    accepts_images: bool = False
    architecture: str = ""
    precision: str = ""
    self_test: str = ""
    """What the server's test before READY found; empty where there is nothing to test against."""
    version_labels: tuple[str, ...] = ()
    """Words that a request may say for this version. Known in every state."""

    @property
    def ready(self) -> bool:
        """True where the version answers requests."""
        return self.state == "READY"


@dataclass(frozen=True)
class ModelInfo:
    """A model and its versions."""

    name: str
    versions: tuple[VersionInfo, ...]
    reason: str = ""
    """Why no version is served, where the model has none to serve."""
    max_message_bytes: int | None = None
    """The largest message the server reads. Filled by `get_model` only."""

    @property
    def ready(self) -> bool:
        """True where a version answers requests."""
        return any(version.ready for version in self.versions)
