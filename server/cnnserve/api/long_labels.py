"""Describes models with very many labels without holding the event loop.

protobuf needs a second to copy a million labels into a response and to serialise it, and nothing else runs meanwhile.
So the bytes of the labels are made once for each version, on a thread, and put between the bytes of the other fields.
"""

import asyncio
from functools import partial
from weakref import WeakKeyDictionary

from cnnserve.api.describe import describe_version
from cnnserve.model.version import Model
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import ModelEntry
from cnnserve.wire import classifier_pb2 as pb

# Fewer labels take less than a millisecond.
_MANY = 5000
# The type of a field that holds bytes, a text or a message.
_LENGTH_DELIMITED = 2


class LongLabels:
    """The labels of versions as bytes, for as long as the versions live. Use on one event loop."""

    def __init__(self) -> None:
        self._bytes: WeakKeyDictionary[Model, bytes] = WeakKeyDictionary()
        # One version at a time, so that clients which ask together do not have the same bytes made several times.
        self._lock = asyncio.Lock()

    def has_many(self, entry: ModelEntry) -> bool:
        """Returns whether a version of a model has so many labels."""
        return bool(_long(entry))

    async def prepare(self, entry: ModelEntry) -> None:
        """Makes the bytes of the labels of all versions of a model that have many, on a thread."""
        if all(model in self._bytes for model in _long(entry)):
            return
        async with self._lock:
            for model in _long(entry):
                if model not in self._bytes:
                    self._bytes[model] = await on_thread(partial(labels_field, model.info.labels), "labels")

    def model_field(self, entry: ModelEntry) -> bytes:
        """Returns the field `model` of a `GetModelResponse`, after `prepare`, as it is on the wire."""
        parts = [pb.Model(name=entry.name, reason=entry.reason).SerializeToString()]
        for version in entry.versions.values():
            long = self._bytes.get(version.model, b"") if version.model is not None else b""
            short = describe_version(entry, version, labels=not long).SerializeToString()
            parts += _field(_VERSIONS, short, long)
        return b"".join(_field(_MODEL, *parts))


def labels_field(labels: tuple[str, ...]) -> bytes:
    """Returns the field `labels` of a `ModelVersion` as it is on the wire."""
    return b"".join(part for label in labels for part in _field(_LABELS, label.encode()))


def _long(entry: ModelEntry) -> list[Model]:
    models = [version.model for version in entry.versions.values() if version.model is not None]
    return [model for model in models if len(model.info.labels) > _MANY]


def _field(number: int, *parts: bytes) -> tuple[bytes, ...]:
    """Returns a field whose value is `parts`, one after the other."""
    return _varint(number << 3 | _LENGTH_DELIMITED), _varint(sum(map(len, parts))), *parts


def _varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*groups, value))


_MODEL = pb.GetModelResponse.DESCRIPTOR.fields_by_name["model"].number
_VERSIONS = pb.Model.DESCRIPTOR.fields_by_name["versions"].number
_LABELS = pb.ModelVersion.DESCRIPTOR.fields_by_name["labels"].number
