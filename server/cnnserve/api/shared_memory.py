"""System shared memory: its three RPCs, and the parameters with which a tensor names its place there.

The three RPCs for CUDA shared memory exist to be refused with a text that says what to do instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from google.protobuf.message import Message

from cnnserve.access.scopes import Scope
from cnnserve.api.methods import INFERENCE, CallContext, Method
from cnnserve.api.parameters import integer, text
from cnnserve.api.regions import Region, SharedMemory
from cnnserve.errors import InvalidInput, RegionNotFound, Unsupported
from cnnserve.wire import open_inference_pb2 as pb

REGION, OFFSET, SIZE = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"


@dataclass(frozen=True)
class Place:
    """`size` bytes from `offset` of a region."""

    region: Region
    offset: int
    size: int

    def read(self) -> bytes:
        """Returns a copy of the bytes. Raises as `Region.read`."""
        return self.region.read(self.offset, self.size)

    def write(self, data: bytes) -> None:
        """Writes `data` to the place. Raises `InvalidInput` if it does not fit, and as `Region.write`."""
        if len(data) > self.size:
            raise InvalidInput(
                f"the output has {len(data)} bytes, but its {SIZE} in region '{self.region.name}' is {self.size}; "
                f"send a larger {SIZE}"
            )
        self.region.write(self.offset, data)


def place_of(parameters: Mapping[str, pb.InferParameter], tensor: str, memory: SharedMemory) -> Place | None:
    """Returns the place in shared memory that a tensor's parameters name; None: the tensor is in the message.

    Raises `InvalidInput` if the parameters name no valid place, and as `SharedMemory.get`.
    """
    if REGION not in parameters:
        for name in (OFFSET, SIZE):
            if name in parameters:
                raise InvalidInput(f"tensor '{tensor}' has {name} without {REGION}; send both")
        return None
    if SIZE not in parameters:
        raise InvalidInput(f"tensor '{tensor}' has {REGION} without {SIZE}; send both")
    region = memory.get(text(parameters, REGION))
    place = Place(region, integer(parameters, OFFSET), integer(parameters, SIZE))
    region.check(place.offset, place.size)
    return place


class SharedMemoryService:
    """Handlers of SystemSharedMemoryStatus, -Register and -Unregister, and of CUDA's RPCs, which are refused."""

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    @property
    def extensions(self) -> tuple[str, ...]:
        """The extensions for the server's metadata: none if shared memory is off."""
        return ("system_shared_memory",) if self._memory.enabled else ()

    def methods(self) -> list[Method]:
        """Returns the service's rows of the method table."""
        prefix = f"{INFERENCE}/SystemSharedMemory"
        return [
            Method(
                f"{prefix}Status",
                pb.SystemSharedMemoryStatusRequest,
                pb.SystemSharedMemoryStatusResponse,
                self.status,
                Scope.READ,
            ),
            Method(
                f"{prefix}Register",
                pb.SystemSharedMemoryRegisterRequest,
                pb.SystemSharedMemoryRegisterResponse,
                self.register,
                Scope.ADMIN,
            ),
            Method(
                f"{prefix}Unregister",
                pb.SystemSharedMemoryUnregisterRequest,
                pb.SystemSharedMemoryUnregisterResponse,
                self.unregister,
                Scope.ADMIN,
            ),
            *(
                Method(
                    f"{INFERENCE}/CudaSharedMemory{verb}",
                    getattr(pb, f"CudaSharedMemory{verb}Request"),
                    getattr(pb, f"CudaSharedMemory{verb}Response"),
                    self.refuse_cuda,
                    Scope.READ if verb == "Status" else Scope.ADMIN,
                )
                for verb in ("Status", "Register", "Unregister")
            ),
        ]

    async def status(
        self, request: pb.SystemSharedMemoryStatusRequest, _: CallContext
    ) -> pb.SystemSharedMemoryStatusResponse:
        """Returns one region, or all. Raises `RegionNotFound`, and `Unsupported` if shared memory is off."""
        regions = [region for region in self._memory.all() if request.name in ("", region.name)]
        if request.name and not regions:
            raise RegionNotFound(f"shared memory region '{request.name}' is not registered; register it first")
        response = pb.SystemSharedMemoryStatusResponse()
        for region in regions:
            row = response.regions[region.name]
            row.name, row.key, row.offset, row.byte_size = region.name, region.key, region.offset, region.byte_size
        return response

    async def register(
        self, request: pb.SystemSharedMemoryRegisterRequest, _: CallContext
    ) -> pb.SystemSharedMemoryRegisterResponse:
        """Registers a region. Raises as `SharedMemory.register`."""
        self._memory.register(request.name, request.key, request.offset, request.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    async def unregister(
        self, request: pb.SystemSharedMemoryUnregisterRequest, _: CallContext
    ) -> pb.SystemSharedMemoryUnregisterResponse:
        """Removes a region, or all. Raises as `SharedMemory.unregister`."""
        self._memory.unregister(request.name)
        return pb.SystemSharedMemoryUnregisterResponse()

    async def refuse_cuda(self, _: Message, __: CallContext) -> NoReturn:
        """Raises `Unsupported`. Its text says what to do; the status of an unknown method would not."""
        raise Unsupported("CUDA shared memory is not supported; use system shared memory, or send tensors in messages")
