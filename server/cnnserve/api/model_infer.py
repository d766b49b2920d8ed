"""Turns a ModelInfer request into a model's input, and the model's outputs into the response."""

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cnnserve.api import answer_size, classification_output, tensors
from cnnserve.api.methods import CallContext
from cnnserve.api.parameters import check_reserved, integer
from cnnserve.api.regions import SharedMemory
from cnnserve.api.shared_memory import OFFSET, REGION, SIZE, Place, place_of
from cnnserve.batching.batcher import BatchResult
from cnnserve.datatypes import NUMPY_TYPES
from cnnserve.errors import InvalidInput
from cnnserve.model.version import Model
from cnnserve.process.admission import MemoryBudget
from cnnserve.wire import open_inference_pb2 as pb

_CLASSIFICATION = "classification"


@dataclass(frozen=True)
class _Wanted:
    """One output that the request asks for, by its index.

    If `k` is not 0, the response has the `k` largest values as classes. If `place` is set, the values are written
    there, otherwise into the message.
    """

    index: int
    k: int = 0
    place: Place | None = None

    @property
    def sends_values(self) -> bool:
        """Whether the message contains the values themselves."""
        return not self.k and self.place is None


@dataclass(frozen=True)
class Checked:
    """What the checks of a request found: the outputs that it wants, its tensor's shape, and the tensor's bytes.

    `tensor_bytes` is 0 if the tensor has images.
    """

    wanted: list[_Wanted]
    shape: tuple[int, ...]
    images: bool
    tensor_bytes: int
    # Of the response, as far as the model says.
    sent_bytes: int


@dataclass(frozen=True)
class Inference:
    """What all requests share: the memory budget, the shared memory regions and the largest message in bytes.

    A tensor in shared memory may be as large as the largest message.
    """

    budget: MemoryBudget
    memory: SharedMemory
    max_message_bytes: int

    async def run(self, request: pb.ModelInferRequest, model: Model, context: CallContext) -> pb.ModelInferResponse:
        """Returns the response of a model to a request. Raises `ServingError`s."""
        checked = self.check(request, model)
        wanted = checked.wanted
        info, record = model.info, context.record
        if record is not None:
            record.model, record.version, record.images = info.name, str(info.version), checked.shape[0]
        with context.images(checked.shape[0]):
            result = await self._infer(request, model, checked, context.deadline_ns, context.client)
        if record is not None:
            record.queue_ns, record.compute_ns = result.queue_ns, result.compute_ns
            record.run_ns, record.batch_size = result.started_ns, result.batch_size
        outputs = [result.outputs[item.index] for item in wanted]
        self._check_size(sum(output.nbytes for item, output in zip(wanted, outputs, strict=True) if item.sends_values))
        response = pb.ModelInferResponse(model_name=info.name, model_version=str(info.version), id=request.id)
        contents = [_write(response, item, output, model) for item, output in zip(wanted, outputs, strict=True)]
        # In the message, each content also has a tag (1 byte) and a length (at most 5 bytes).
        self._check_size(response.ByteSize() + sum(map(len, contents)) + 6 * len(contents))
        response.raw_output_contents.extend(contents)
        return response

    def check(self, request: pb.ModelInferRequest, model: Model) -> Checked:
        """Checks everything but the values of the tensor. Raises `ServingError`s."""
        # Cheap checks come first, so that a request which fails them takes no more time of the event loop.
        _check_input_name(request, model)
        check_reserved(request.parameters)
        wanted = _wanted_outputs(request, model, self.memory)
        tensor = request.inputs[0]
        shape = tensors.check_shape(tensor)
        images = tensor.datatype == tensors.BYTES and model.accepts_images
        if images:
            _check_images_shape(tensor.name, shape, model)
        else:
            model.check_input(tensor.datatype, shape)
        _check_classes(wanted, shape[0], model)
        sent_bytes = _sent_bytes(wanted, shape[0], model)
        self._check_size(sent_bytes)
        return Checked(wanted, shape, images, 0 if images else tensors.byte_size(tensor), sent_bytes)

    def _check_size(self, size: int) -> None:
        answer_size.check(
            size, self.max_message_bytes - answer_size.AROUND, "send fewer rows, ask for fewer outputs or classes"
        )

    async def _infer(
        self, request: pb.ModelInferRequest, model: Model, checked: Checked, deadline_ns: int | None, client: str
    ) -> BatchResult:
        priority, timeout_us = integer(request.parameters, "priority"), integer(request.parameters, "timeout")
        tensor, shape, images = request.inputs[0], checked.shape, checked.images
        place = place_of(tensor.parameters, tensor.name, self.memory)
        rows_bytes = shape[0] * model.row_bytes if images else 0
        with self.budget.hold(_held_bytes(request, place, rows_bytes) + checked.sent_bytes):
            raw = self._raw(request, place, checked.tensor_bytes)
            if images:
                sources = tensors.read_strings(tensor, raw)
                return await model.infer_images(sources, deadline_ns, priority, timeout_us, client)
            return await model.infer(tensors.read(tensor, raw), deadline_ns, priority, timeout_us)

    def _raw(self, request: pb.ModelInferRequest, place: Place | None, expected: int) -> bytes | None:
        raw = tensors.raw_contents(request)
        if place is None:
            return raw
        name = request.inputs[0].name
        if raw is not None or tensors.has_contents(request.inputs[0]):
            raise InvalidInput(f"input '{name}' is both in shared memory and in the message; send only one of them")
        if place.size > self.max_message_bytes:
            raise InvalidInput(
                f"input '{name}' has {place.size} bytes in shared memory, the limit is {self.max_message_bytes} bytes; "
                "send fewer rows, or start the server with a larger --max-message-mib"
            )
        if expected and place.size != expected:
            raise InvalidInput(
                f"input '{name}' has {SIZE} {place.size}, expected {expected} for its data type and shape"
            )
        return place.read()


def _held_bytes(request: pb.ModelInferRequest, place: Place | None, rows: int) -> int:
    """Returns the bytes that a request holds: its message, its shared memory and the `rows` decoded from its images.

    A tensor of numbers is about as large as its message and not counted again.
    """
    return request.ByteSize() + (place.size if place else 0) + rows


def _check_input_name(request: pb.ModelInferRequest, model: Model) -> None:
    if len(request.inputs) != 1:
        raise InvalidInput(f"the request has {len(request.inputs)} inputs, model '{model.info.name}' takes 1")
    name, own = request.inputs[0].name, model.info.settings.input.name
    if name != own:
        raise InvalidInput(f"the request has input '{name}', but the input of model '{model.info.name}' is '{own}'")


def _check_images_shape(name: str, shape: tuple[int, ...], model: Model) -> None:
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] != 1):
        raise InvalidInput(f"input '{name}' of type BYTES has shape {list(shape)}; send n images as [n] or [n, 1]")
    # A tensor may hold millions of images, so the count is checked before each image becomes an object.
    model.check_count(shape[0], "images")


def _check_classes(wanted: list[_Wanted], rows: int, model: Model) -> None:
    """Raises `InvalidInput` if the classes of outputs of known size are too many.

    `classification_output.classes` checks the other outputs after the run.
    """
    settings = model.info.settings
    for item in wanted:
        output = settings.outputs[item.index]
        if item.k and all(size > 0 for size in output.dims):
            classification_output.check_size(
                rows if settings.batched else 1, math.prod(output.dims), item.k, output.name
            )


def _sent_bytes(wanted: list[_Wanted], rows: int, model: Model) -> int:
    """Returns the bytes of the values in the response to `rows` rows. Outputs of unknown size count as 0 bytes."""
    settings = model.info.settings
    outputs = [settings.outputs[item.index] for item in wanted if item.sends_values]
    return sum(
        (rows if settings.batched else 1) * math.prod(output.dims) * NUMPY_TYPES[output.datatype].itemsize
        for output in outputs
        if all(size > 0 for size in output.dims)
    )


def _wanted_outputs(request: pb.ModelInferRequest, model: Model, memory: SharedMemory) -> list[_Wanted]:
    names = [output.name for output in model.info.settings.outputs]
    if not request.outputs:
        return list(map(_Wanted, range(len(names))))
    wanted: dict[str, _Wanted] = {}
    for output in request.outputs:
        if output.name not in names:
            raise InvalidInput(f"the request asks for output '{output.name}', but the model has {', '.join(names)}")
        if output.name in wanted:
            raise InvalidInput(f"the request asks for output '{output.name}' twice; ask for it once")
        wanted[output.name] = _wanted(names.index(output.name), output, model, memory)
    return list(wanted.values())


def _wanted(
    index: int, output: pb.ModelInferRequest.InferRequestedOutputTensor, model: Model, memory: SharedMemory
) -> _Wanted:
    place = place_of(output.parameters, output.name, memory)
    if _CLASSIFICATION not in output.parameters:
        return _Wanted(index, place=place)
    k = integer(output.parameters, _CLASSIFICATION, kinds=("int64_param",))
    if k == 0:
        raise InvalidInput(f"parameter '{_CLASSIFICATION}' of output '{output.name}' is 0, expected 1 or more")
    if place is not None:
        raise InvalidInput(f"output '{output.name}' has both classification and shared memory; ask for only one")
    classification_output.check(model.info.settings.outputs[index].datatype, output.name)
    return _Wanted(index, k)


def _write(response: pb.ModelInferResponse, wanted: _Wanted, output: NDArray[Any], model: Model) -> bytes:
    """Adds an output's description to the response and returns its raw contents, b"" if they went to shared memory."""
    settings = model.info.settings
    name = settings.outputs[wanted.index].name
    if wanted.k:
        rows = output if settings.batched else output[None]
        labels = model.info.labels if wanted.index == settings.label_output else ()
        count, texts = classification_output.classes(rows, wanted.k, labels, name)
        return tensors.write_strings(response, name, [len(rows), count] if settings.batched else [count], texts)
    data = tensors.write_output(response, name, output)
    if wanted.place is None:
        return data
    wanted.place.write(data)
    parameters = response.outputs[-1].parameters
    parameters[REGION].string_param = wanted.place.region.name
    parameters[OFFSET].int64_param = wanted.place.offset
    parameters[SIZE].int64_param = len(data)
    # The empty content keeps the indices of raw contents and outputs equal.
    return b""
