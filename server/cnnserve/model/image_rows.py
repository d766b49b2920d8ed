"""Turns the images of one request into rows of the model's input, on the event loop or on the decoding threads."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor

import numpy as np

from cnnserve.datatypes import Rows
from cnnserve.errors import DeadlineExceeded, ServingError
from cnnserve.images.preprocessing import ImageSource, Preprocessor

# Handing over a single small image takes longer than decoding it. So if a request has only small images, at most
# `_INLINE_IMAGES`, the event loop decodes them. Otherwise the decoding threads do: small images in groups of
# `_QUICK_IMAGES`, each larger image alone.
_INLINE_IMAGES = 4
_QUICK_IMAGES = 16


class ImageRows:
    """The images of one request and their rows. `errors`: the errors of images that failed, by index."""

    def __init__(self, preprocessor: Preprocessor, images: Sequence[ImageSource], deadline_ns: int | None) -> None:
        self.errors: dict[int, ServingError] = {}
        self._preprocessor = preprocessor
        self._images = images
        self._deadline_ns = deadline_ns
        self._rows = preprocessor.empty(len(images))

    async def read(self, decoders: Executor) -> None:
        """Reads all images: a few small ones on the event loop, others on `decoders`. Raises `DeadlineExceeded`."""
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
            # If the request was cancelled or its deadline passed, images whose decoding has not begun are not decoded.
            for job in jobs:
                job.cancel()

    def fail_rows(self, errors: Mapping[int, ServingError]) -> None:
        """Notes errors of `good_rows`, by row, as errors of their images."""
        good = [index for index in range(len(self._images)) if index not in self.errors]
        for row, error in errors.items():
            self.errors[good[row]] = error

    def good_rows(self) -> Rows:
        """Returns the rows of the images that could be read, in order."""
        if not self.errors:
            return self._rows
        return np.delete(self._rows, list(self.errors), axis=0)

    def _sorted_out(self) -> tuple[list[int], list[int]]:
        """Returns the indices of the small images and of the others."""
        quick: list[int] = []
        others: list[int] = []
        for index, image in enumerate(self._images):
            (quick if self._preprocessor.is_quick(image) else others).append(index)
        return quick, others

    def _read(self, indices: Sequence[int]) -> None:
        """Reads the images at `indices`, on any thread. Raises `DeadlineExceeded`."""
        for index in indices:
            if self._deadline_ns is not None and self._deadline_ns <= time.monotonic_ns():
                raise DeadlineExceeded("the deadline passed before all images were read")
            try:
                self._rows[index] = self._preprocessor.row(self._images[index])
            except ServingError as error:
                self.errors[index] = error
