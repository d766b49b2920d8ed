"""Describes a model of the registry as a `cnnserve.v1.Model` message."""

from cnnserve.registry.lifecycle import ModelEntry, VersionEntry
from cnnserve.wire import classifier_pb2 as pb


def describe(entry: ModelEntry, *, labels: bool) -> pb.Model:
    """Returns the message for a model; `labels`: include the labels of the classes."""
    versions = [describe_version(entry, version, labels=labels) for version in entry.versions.values()]
    return pb.Model(name=entry.name, versions=versions, reason=entry.reason)


def describe_version(model: ModelEntry, entry: VersionEntry, *, labels: bool) -> pb.ModelVersion:
    """Returns the message for one version of a model; `labels`: include the labels of the classes."""
    message = _version(entry, labels=labels)
    message.version_labels.extend(model.labels.of(entry.version))
    return message


def _version(entry: VersionEntry, *, labels: bool) -> pb.ModelVersion:
    message = pb.ModelVersion(version=str(entry.version), state=f"MODEL_STATE_{entry.state.value}", reason=entry.reason)
    if entry.model is None:
        return message
    info = entry.model.info
    settings = info.settings
    message.input.name, message.input.datatype = settings.input.name, settings.input.datatype
    message.input.shape.extend([*([-1] if settings.batched else []), *settings.input.dims])
    message.class_count = info.class_count
    message.max_batch_size = settings.max_batch_size
    message.verified = info.self_test is not None
    message.accepts_images = entry.model.accepts_images
    message.self_test = str(info.self_test or info.probe or "")
    message.placement.update(info.placement)
    if info.manifest is not None:
        message.architecture, message.precision = info.manifest.architecture, info.manifest.onnx.precision
        message.contract = info.manifest.schema
    if labels:
        message.labels.extend(info.labels)
    return message
