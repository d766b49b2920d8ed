"""What the page of the HTTP port shows and no RPC tells: manifests, golden images, network inputs, occlusion maps.

Knows no transport. Every image that it runs goes through the model's queue.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from cnnserve.api.methods import CallContext
from cnnserve.errors import InvalidInput, ModelNotFound, QueueFull, Unsupported
from cnnserve.model.occlusion import MOST_ROWS, occlusion
from cnnserve.model.version import Model
from cnnserve.process.admission import MemoryBudget
from cnnserve.process.threads import on_thread
from cnnserve.registry.lifecycle import VersionEntry
from cnnserve.registry.registry import Registry
from cnnserve.repository import manifest as manifests

# An occlusion map takes hundreds of runs, so one is made at a time, and a few may wait.
_MOST_MAPS = 4
_LONGEST_S = 120
_RETRY_MS = 2000


class PageService:
    """The page's own questions. Use on one event loop."""

    def __init__(self, registry: Registry, budget: MemoryBudget) -> None:
        self._registry = registry
        self._budget = budget
        self._turn = asyncio.Lock()
        self._maps = 0

    async def describe(self, name: str, version: str) -> dict[str, Any]:
        """Returns what is known about a READY version, its manifest included. Raises as `Registry.get`."""
        model = self._registry.get(name, version)
        info = model.info
        manifest = info.manifest
        return {
            "model": info.name,
            "version": str(info.version),
            "load_s": self._entry(model).load_s,
            "instances": model.instances,
            "rows": info.rows.activation,
            "label_count": len(info.labels),
            "size_bytes": None if manifest is None else sum(file.bytes for file in manifest.files.values()),
            "manifest": None if manifest is None else manifests.document(manifest),
            "self_test": None if info.self_test is None else _self_test(model),
        }

    async def labels(self, name: str, version: str) -> tuple[str, ...]:
        """Returns the labels of a READY version by class. Raises as `Registry.get`."""
        return self._registry.get(name, version).info.labels

    async def golden_image(self, name: str, version: str, index: int) -> bytes:
        """Returns the bytes of a golden image. Raises as `Registry.get`, and `Unsupported` if the version has none.

        Raises `ModelLoadFailed` if the file has changed since the version was loaded.
        """
        info = self._registry.get(name, version).info
        if info.manifest is None or info.folder is None:
            raise Unsupported(f"model '{name}' has no golden image, because it has no manifest")
        images = info.manifest.golden.images
        if index >= len(images):
            raise InvalidInput(f"golden image {index} does not exist, the version has {len(images)}")
        read = partial(manifests.read_again, info.manifest, info.folder, info.version, images[index])
        return await on_thread(read, "golden-image")

    async def picture(self, name: str, version: str, image: bytes, context: CallContext) -> bytes:
        """Returns a PNG of the pixels that the network gets for an image. Raises `ServingError`s."""
        model = self._registry.get(name, version)
        with context.images(1), self._budget.hold(len(image) + 2 * model.row_bytes):
            row = await model.image_row(image, context.deadline_ns, context.client)
            return await on_thread(partial(model.picture, row), "picture")

    async def explain(
        self, name: str, version: str, image: bytes, context: CallContext, *, index: int | None, cells: int
    ) -> dict[str, Any]:
        """Returns the occlusion map of an image for a class (None: the most probable one). Raises `ServingError`s."""
        model = self._registry.get(name, version)
        longest_ns = time.monotonic_ns() + _LONGEST_S * 10**9
        deadline_ns = longest_ns if context.deadline_ns is None else min(context.deadline_ns, longest_ns)
        with context.images(1), self._budget.hold(len(image) + (MOST_ROWS + 2) * model.row_bytes):
            async with self._one_map():
                # The version may have been replaced while this request waited for its turn.
                model = self._registry.get(name, version)
                row = await model.image_row(image, deadline_ns, context.client)
                found = await occlusion(model, row, index, cells, deadline_ns)
        labels = model.info.labels
        label = labels[found.index] if found.index < len(labels) else ""
        names = {"model": model.info.name, "version": str(model.info.version), "label": label}
        return names | dataclasses.asdict(found)

    @contextlib.asynccontextmanager
    async def _one_map(self) -> AsyncIterator[None]:
        if self._maps >= _MOST_MAPS:
            raise QueueFull(f"{self._maps} occlusion maps are being made or wait; try again later", _RETRY_MS)
        self._maps += 1
        try:
            async with self._turn:
                yield
        finally:
            self._maps -= 1

    def _entry(self, model: Model) -> VersionEntry:
        for entry in self._registry.entry(model.info.name).versions.values():
            if entry.model is model:
                return entry
        raise ModelNotFound(f"model '{model.info.name}' was replaced; ask again")


def _self_test(model: Model) -> dict[str, Any]:
    test = model.info.self_test
    assert test is not None
    return {
        "text": str(test),
        "golden_difference": test.golden_difference,
        "batch_difference": test.batch_difference,
        "tolerance": test.tolerance,
        "batches": {str(size): difference for size, difference in test.batches.items()},
        "provider": test.provider,
        "complete": test.complete,
    }
