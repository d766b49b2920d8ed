"""System shared memory: its three RPCs, and the parameters by which a tensor says that it lies there.

CUDA's three RPCs are there to be refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.message import Message

from cnnserve.api.methods import INFERENCE, CallContext, Method
from cnnserve.api.parameters import integer, text
from cnnserve.api.regions import Region, SharedMemory
from cnnserve.errors import InvalidInput, RegionNotFound, Unsupported
from cnnserve.wire import open_inference_pb2 as pb

REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


@dataclass(frozen=True)
class Place:
    """`size` bytes of a region."""

    region: Region
    offset: int
    size: int

    def read(self) -> bytes:
        """A copy of the bytes. Raises `InvalidInput`."""
        return self.region.read(self.offset, self.size)

    def write(self, data: bytes) -> None:
        """Raises `InvalidInput` where they do not fit."""
        if len(data) > self.size:
            raise InvalidInput(
                f"the output has {len(data)} bytes, {SIZE} for it in region '{self.region.name}' is {self.size}"
            )
        self.region.write(self.offset, data)


def place_of(parameters: Mapping[str, pb.InferParameter], tensor: str, memory: SharedMemory) -> Place | None:
    """Where a tensor's parameters say its bytes are; None: in the message. Raises as `SharedMemory.get`."""
    if REGION not in parameters:
        for name in (OFFSET, SIZE):
            if name in parameters:
                raise InvalidInput(f"tensor '{tensor}' has {name} without {REGION}")
        return None
    if SIZE not in parameters:
        raise InvalidInput(f"tensor '{tensor}' has {REGION} without {SIZE}")
    region = memory.get(text(parameters, REGION))
    place = Place(region, integer(parameters, OFFSET), integer(parameters, SIZE))
    region.check(place.offset, place.size)
    return place


class SharedMemoryService:
    """SystemSharedMemoryStatus, Register and Unregister; CUDA's by the same names are refused."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    @property
    def extensions(self) -> tuple[str, ...]:
        """What the server's metadata may promise."""
        return ("system_shared_memory",) if self._memory.enabled else ()

    def methods(self) -> list[Method]:
        """The service's rows of the method table."""
        prefix = f"{INFERENCE}/SystemSharedMemory"
        return [
            Method(
                f"{prefix}Status",
                pb.SystemSharedMemoryStatusRequest,
                pb.SystemSharedMemoryStatusResponse,
                self.status,
            ),
            Method(
                f"{prefix}Register",
                pb.SystemSharedMemoryRegisterRequest,
                pb.SystemSharedMemoryRegisterResponse,
                self.register,
            ),
            Method(
                f"{prefix}Unregister",
                pb.SystemSharedMemoryUnregisterRequest,
                pb.SystemSharedMemoryUnregisterResponse,
                self.unregister,
            ),
            *(
                Method(
                    f"{INFERENCE}/CudaSharedMemory{verb}",
                    getattr(pb, f"CudaSharedMemory{verb}Request"),
                    getattr(pb, f"CudaSharedMemory{verb}Response"),
                    self.refuse_cuda,
                )
                for verb in ("Status", "Register", "Unregister")
            ),
        ]

    async def status(
        self, request: pb.SystemSharedMemoryStatusRequest, _: CallContext
    ) -> pb.SystemSharedMemoryStatusResponse:
        """One region, or all. Raises `RegionNotFound`, `Unsupported`."""
        regions = [region for region in self._memory.all() if request.name in ("", region.name)]
        if request.name and not regions:
            raise RegionNotFound(f"shared memory region '{request.name}' is not registered")
        response = pb.SystemSharedMemoryStatusResponse()
        for region in regions:
            row = response.regions[region.name]
            row.name, row.key, row.offset, row.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest, _: CallContext
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Raises `InvalidInput`, `AlreadyExists`, `LimitReached`, `Unsupported`."""
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, _: CallContext
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """One region, or all; requests at work keep theirs."""
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def refuse_cuda(self, _: Message, __: CallContext) -> NoReturn:
        """Raises `Unsupported`: a name says more than a method that is not there."""
        raise Unsupported("CUDA shared memory is not supported; use system shared memory, or send tensors")
