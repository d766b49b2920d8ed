"""ModelInfer requests that were seen before: their tensor is run without parsing and checking the message again.

All requests of a client for one model begin with the same bytes: name, shape, data type. Only the id and the bytes of
the tensor change, and the tensor comes last. So the bytes between id and tensor are kept beside what the checks found,
and a request with equal bytes needs no check but that its model version is still the one that serves. The constant part
of the response is kept in the same way. Only the parsing is skipped: admission, limits, counts and errors are those of
`model_infer`. A request that is written in any other way, with parameters for instance, is not kept.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from cnnserve.api import status
from cnnserve.api.model_infer import Inference
from cnnserve.api.tensors import BYTES
from cnnserve.batching.batcher import BatchResult
from cnnserve.datatypes import NUMPY_TYPES, WORDS, Rows
from cnnserve.errors import ServingError
from cnnserve.model.version import Model
from cnnserve.registry.registry import Registry
from cnnserve.wire import open_inference_pb2 as pb

# Takes the serialised response, or the error of the request.
Respond = Callable[[bytes | None, Exception | None], None]
# Ends a request whose client has left.
Leave = Callable[[], None]

# Tags of the first fields of a request, and of the tensors of a response.
_NAME, _VERSION, _ID, _RESPONSE_RAW = 0x0A, 0x12, 0x1A, 0x32
# Lengths below this take one byte.
_ONE_BYTE = 0x80
# If there are more kinds of requests, all are forgotten, so that memory stays bounded.
_MOST_KNOWN = 256
# Longer heads are rare and not worth their memory.
_LONGEST_HEAD = 1024

# The bytes before the id, and the number of bytes behind it.
_Key = tuple[bytes, int]


@dataclass(frozen=True)
class _Constant:
    """The part of the response that depends on the output shapes only."""

    shapes: tuple[tuple[int, ...], ...]
    before_id: bytes
    behind_id: bytes
    # Tag and length of each tensor.
    tags: tuple[bytes, ...]


@dataclass
class _Known:
    """A kind of request: `head` are its bytes between id and tensor; `outputs` the indices that it asks for."""

    head: bytes
    name: str
    version: str
    model: Model
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    tensor_bytes: int
    sent_bytes: int
    outputs: tuple[int, ...]
    constant: _Constant | None = None


class KnownRequests:
    """Answers requests whose kind was seen before. Use on one event loop."""

    def __init__(self, registry: Registry, inference: Inference) -> None:
        self._registry = registry
        self._inference = inference
        self._known: dict[_Key, _Known] = {}
        # Seen once, or not worth keeping.
        self._seen: set[_Key] = set()
        self._refused: set[_Key] = set()

    def __len__(self) -> int:
        return len(self._known)

    def answer(self, data: bytes, deadline_ns: int | None, respond: Respond) -> Leave | None:
        """Runs the tensor of a known request and returns how to end it early; returns None for other bytes.

        `respond` is called once, perhaps before this returns. Raises `ServingError`s as `Inference.run` does. No timer
        watches `deadline_ns`: the transport has to end the request when it passes.
        """
        split = _split(data)
        if split is None:
            return None
        id_at, behind_id = split
        key = (data[:id_at], len(data) - behind_id)
        known = self._known.get(key)
        if known is None or not data.startswith(known.head, behind_id):
            self._learn(key, data, behind_id)
            return None
        if self._serving(known.name, known.version) is not known.model:
            del self._known[key]
            return None
        return self._run(known, data, data[id_at:behind_id], deadline_ns, respond)

    def _run(self, known: _Known, data: bytes, id_field: bytes, deadline_ns: int | None, respond: Respond) -> Leave:
        budget, size = self._inference.budget, len(data) + known.sent_bytes
        budget.take(size)

        def on_done(outcome: BatchResult | Exception) -> None:
            budget.give(size)
            if isinstance(outcome, Exception):
                respond(None, status.mark(outcome, id_field[2:].decode()))
            else:
                respond(_response(known, id_field, outcome.outputs), None)

        try:
            withdraw = known.model.start_infer(_tensor(known, data), on_done, deadline_ns)
        except BaseException:
            budget.give(size)
            raise

        def leave() -> None:
            if withdraw():
                budget.give(size)

        return leave

    def _learn(self, key: _Key, data: bytes, behind_id: int) -> None:
        """Keeps the second request of a kind, if its checks pass and nothing but a tensor is in it."""
        if key in self._refused:
            return
        if key not in self._seen:
            _add_bounded(self._seen, key)
            return
        self._seen.discard(key)
        known = self._look(data, behind_id)
        if known is None:
            _add_bounded(self._refused, key)
            return
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = known

    def _look(self, data: bytes, behind_id: int) -> _Known | None:
        try:
            request = pb.ModelInferRequest.FromString(data)
            model = self._registry.get(request.model_name, request.model_version)
            checked = self._inference.check(request, model)
        except (DecodeError, ServingError):
            return None
        tensor = request.inputs[0]
        # Any other way to write the same message may mean something else with another id or tensor.
        is_plain = not request.parameters and not tensor.parameters and not tensor.contents.ListFields()
        is_canonical = request.SerializeToString(deterministic=True) == data
        values_only = all(item.sends_values for item in checked.wanted)
        if not (is_plain and is_canonical and values_only and model.is_untimed) or tensor.datatype == BYTES:
            return None
        if len(request.raw_input_contents) != 1 or not data.endswith(request.raw_input_contents[0]):
            return None
        size = len(request.raw_input_contents[0])
        head = data[behind_id : len(data) - size]
        dtype = NUMPY_TYPES[tensor.datatype]
        if len(head) > _LONGEST_HEAD or size != checked.tensor_bytes or not size:
            return None
        outputs = tuple(item.index for item in checked.wanted)
        name, version = request.model_name, request.model_version
        return _Known(head, name, version, model, dtype, tuple(tensor.shape), size, checked.sent_bytes, outputs)

    def _serving(self, name: str, version: str) -> Model | None:
        try:
            return self._registry.get(name, version)
        except ServingError:
            return None


def _split(data: bytes) -> tuple[int, int] | None:
    """Returns where the id of a request begins and ends, equal if it has none; None if the head is of another form."""
    try:
        at = 0
        for tag in (_NAME, _VERSION):
            if data[at] == tag:
                if data[at + 1] >= _ONE_BYTE:
                    return None
                at += 2 + data[at + 1]
        if data[at] != _ID:
            return at, at
        end = at + 2 + data[at + 1]
    except IndexError:
        return None
    # An id of other characters has to be valid UTF-8, which the parser checks.
    return (at, end) if data[at + 1] < _ONE_BYTE and data[at + 2 : end].isascii() and end < len(data) else None


def _add_bounded(keys: set[_Key], key: _Key) -> None:
    if len(keys) >= _MOST_KNOWN:
        keys.clear()
    if len(key[0]) <= _LONGEST_HEAD:
        keys.add(key)


def _tensor(known: _Known, data: bytes) -> Rows:
    offset = len(data) - known.tensor_bytes
    array = np.frombuffer(data, known.dtype, offset=offset).reshape(known.shape)
    # A batch of one request goes to the session as it is, which expects aligned values.
    return array if array.flags.aligned else array.copy()


def _response(known: _Known, id_field: bytes, outputs: list[Rows]) -> bytes:
    wanted = [outputs[index] for index in known.outputs]
    shapes = tuple([output.shape for output in wanted])
    constant = known.constant
    if constant is None or constant.shapes != shapes:
        constant = known.constant = _constant(known, wanted, shapes)
    parts = [constant.before_id, id_field, constant.behind_id]
    for tag, output in zip(constant.tags, wanted, strict=True):
        parts.append(tag)
        parts.append(output.tobytes())
    return b"".join(parts)


def _constant(known: _Known, outputs: list[Rows], shapes: tuple[tuple[int, ...], ...]) -> _Constant:
    info = known.model.info
    names = pb.ModelInferResponse(model_name=info.name, model_version=str(info.version))
    described = pb.ModelInferResponse()
    for index, output in zip(known.outputs, outputs, strict=True):
        described.outputs.add(name=info.settings.outputs[index].name, datatype=WORDS[output.dtype], shape=output.shape)
    tags = tuple(bytes((_RESPONSE_RAW,)) + _varint(output.nbytes) for output in outputs)
    return _Constant(shapes, names.SerializeToString(), described.SerializeToString(), tags)


def _varint(number: int) -> bytes:
    data = bytearray()
    while number >= _ONE_BYTE:
        data.append(number & 0x7F | _ONE_BYTE)
        number >>= 7
    data.append(number)
    return bytes(data)
