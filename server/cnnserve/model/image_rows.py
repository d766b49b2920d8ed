"""The images of one request on their way to rows of the model's input."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np

from cnnserve.datatypes import Rows
from cnnserve.errors import DeadlineExceeded, ServingError
from cnnserve.images.preprocessing import ImageSource, Preprocessor

# So many quick images are read on the event loop; more go to the decoding threads, in parts that are worth the way.
_INLINE_IMAGES = 4
_QUICK_IMAGES = 16


class ImageRows:
    """One request's images on their way to rows; `errors` has an image's own error by its index."""

    def __init__(self, preprocessor: Preprocessor, images: Sequence[ImageSource], deadline_ns: int | None) -> None:
        self.errors: dict[int, ServingError] = {}
        self._preprocessor = preprocessor
        self._images = images
        self._deadline_ns = deadline_ns
        self._rows = preprocessor.empty(len(images))

    async def read(self, decoders: Executor) -> None:
        """Reads all images: a few quick ones on the event loop, others on `decoders`. Raises `DeadlineExceeded`."""
        quick, others = self._sorted_out()
        if not others and len(quick) <= _INLINE_IMAGES:
            self._read(quick)
            return
        parts = [[index] for index in others]
        parts += [quick[start : start + _QUICK_IMAGES] for start in range(0, len(quick), _QUICK_IMAGES)]
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(decoders, self._read, part) for part in parts]
        try:
            await asyncio.gather(*jobs)
        finally:
            # Where it was cancelled or is too late, what has not begun is not decoded any more.
            for job in jobs:
                job.cancel()

    def good_rows(self) -> Rows:
        """The rows of the images that could be read, in order."""
        if not self.errors:
            return self._rows
        return np.delete(self._rows, list(self.errors), axis=0)

    def _sorted_out(self) -> tuple[list[int], list[int]]:
        """Which images are quick to read, and which are not."""
        quick: list[int] = []
        others: list[int] = []
        for index, image in enumerate(self._images):
            (quick if self._preprocessor.is_quick(image) else others).append(index)
        return quick, others

    def _read(self, indices: Sequence[int]) -> None:
        """Reads some of the images; on any thread. Raises `DeadlineExceeded`."""
        for index in indices:
            if self._deadline_ns is not None and self._deadline_ns <= time.monotonic_ns():
                raise DeadlineExceeded("the deadline passed before the images were read")
            try:
                self._rows[index] = self._preprocessor.row(self._images[index])
            except ServingError as error:
                self.errors[index] = error
