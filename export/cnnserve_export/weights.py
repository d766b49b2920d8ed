"""Loads the weights of an export, and the preprocessing and labels that belong to them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from cnnserve.repository.manifest import Preprocessing, Resize
from cnnserve_export import checkpoints, hub, labels, networks
from cnnserve_export.architectures import Architecture
from cnnserve_export.architectures.googlenet import GoogLeNet
from cnnserve_export.errors import ExportError
from cnnserve_export.progress import Stage


@dataclass(frozen=True)
class Weights:
    """What belongs to weights: their entry in the manifest (`account`), preprocessing, and labels or None.

    `brought`: whether the weights themselves brought preprocessing and labels.
    """

    account: dict[str, str]
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None = None
    brought: bool = False


def load(
    network: nn.Module, architecture: Architecture, source: str | None, stage: Stage, key: str | None = None
) -> Weights:
    """Fills `network` from `source`, a file or one of `hub.WORDS`, and returns what belongs to the weights.

    If `source` is None, the network keeps its weights: random ones, or those that the user's own network came with.
    `key` chooses among several weights in a file. Published ImageNet weights bring their own preprocessing and labels,
    even if they are given as a file.
    Raises `ExportError` if the weights cannot be found, downloaded or read, or if they do not fit.
    """
    if key is not None and (source is None or source in hub.WORDS):
        raise ExportError("--weights-key has no effect without a file; give the file with --weights")
    if source is None and networks.is_reference(architecture.name):
        stage.finding = f"those that came with {architecture.name} (--weights FILE loads others)"
        return Weights(networks.origin(architecture.name), architecture.preprocessing)
    if source is None:
        stage.finding = f"random, seed {checkpoints.SEED}: the model is untrained (--weights loads trained weights)"
        return Weights(checkpoints.random_origin(), architecture.preprocessing)
    if source in hub.WORDS:
        wanted = hub.find(architecture.name, source)
        path = hub.fetch(wanted, hub.cache(), lambda done, size: stage.update(_downloading(wanted.file, done, size)))
        account = checkpoints.load(network, path, architecture.training_only, sha256_prefix=wanted.sha256_prefix)
    else:
        account = checkpoints.load(network, Path(source), architecture.training_only, key=key)
    stage.finding = checkpoints.describe(account)
    if (published := hub.recognise(architecture.name, account["sha256"])) is None:
        return Weights(account, architecture.preprocessing)
    stage.finding += f", torchvision's {published.edition}"
    return _published(network, architecture, account, published)


def transform_input(network: nn.Module, account: dict[str, str]) -> dict[str, str]:
    """Makes a GoogLeNet change its input to the range -1 to 1; returns `account` with a note of that.

    The weights that torchvision publishes need it. Raises `ExportError` if the network is not a GoogLeNet.
    """
    if not isinstance(network, GoogLeNet):
        raise ExportError(
            "--transform-input is for googlenet only, because no other network has this step; leave the flag out"
        )
    network.transform_input = True
    return {**account, "transform_input": "true"}


def _published(
    network: nn.Module, architecture: Architecture, account: dict[str, str], published: hub.Published
) -> Weights:
    account = {**account, "source": "torchvision", "edition": published.edition}
    if published.transform_input:
        account = transform_input(network, account)
    preprocessing = dataclasses.replace(architecture.preprocessing, resize=Resize("shorter", (published.resize,)))
    return Weights(account, preprocessing, labels.read(labels.IMAGENET_FILE, architecture.class_count), True)


def _downloading(file: str, done: int, size: int) -> str:
    share = f" of {size / 1e6:.0f} MB ({done / size:.0%})" if size else " MB"
    return f"downloading {file}: {done / 1e6:.0f}{share}"
