"""Turns the images of one request into rows of the model's input, on the event loop or on the decoding threads."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cnnserve.datatypes import Rows
from cnnserve.errors import DeadlineExceeded, ServingError
from cnnserve.images.decoding_pool import Share
from cnnserve.images.decoding_times import DecodingTimes
from cnnserve.images.preprocessing import ImageSource, Preprocessor

# Handing over a single small image takes longer than decoding it. So if a request has only small images, at most
# `_INLINE_IMAGES`, the event loop decodes them. Otherwise the decoding threads do: small images in groups of
# `_QUICK_IMAGES`, each larger image alone.
_INLINE_IMAGES = 4
_QUICK_IMAGES = 16


class ImageRows:
    """The images of one request and their rows. `errors`: the errors of images that failed, by index.

    `times` says how long images take, and learns from these.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        images: Sequence[ImageSource],
        deadline_ns: int | None,
        times: DecodingTimes,
    ) -> None:
        self.errors: dict[int, ServingError] = {}
        self._preprocessor = preprocessor
        self._images = images
        self._works = list(map(preprocessor.work, images))
        self._deadline_ns = deadline_ns
        self._times = times
        self._rows = preprocessor.empty(len(images))

    async def read(self, share: Share) -> None:
        """Reads all images: a few small ones on the event loop, others on the decoding threads.

        Raises `DeadlineExceeded`, also at once if the images are likely to take longer than the request has.
        """
        self._check_time(share.threads)
        quick, others = self._sorted_out()
        if not others and len(quick) <= _INLINE_IMAGES:
            self._read(quick)
            return
        parts = [[index] for index in others]
        parts += [quick[start : start + _QUICK_IMAGES] for start in range(0, len(quick), _QUICK_IMAGES)]
        jobs = [share.run(partial(self._read, part), self._cost_ns(part)) for part in parts]
        try:
            await asyncio.gather(*jobs)
        finally:
            # If the request was cancelled or its deadline passed, images whose decoding has not begun are not decoded.
            share.drop()

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

    def least_ns(self, threads: int) -> float:
        """Returns the time that all images take at least on `threads` threads; 0 if nothing is known of them."""
        each_ns = [self._times.least_ns((work,)) for work in self._works]
        return max(sum(each_ns) / threads, *each_ns)

    def _check_time(self, threads: int) -> None:
        if self._deadline_ns is None:
            return
        needed_ns = self.least_ns(threads)
        left_ns = self._deadline_ns - time.monotonic_ns()
        if needed_ns > left_ns:
            self._times.refused(self._works)
            raise DeadlineExceeded(
                f"the deadline cannot be met: reading the request's images takes about {needed_ns / 1e6:.0f} ms, and "
                f"{max(0, left_ns) / 1e6:.0f} ms are left; allow more time or send fewer or smaller images"
            )

    def _cost_ns(self, indices: Sequence[int]) -> float:
        return self._times.cost_ns(self._works[index] for index in indices)

    def _sorted_out(self) -> tuple[list[int], list[int]]:
        """Returns the indices of the small images and of the others."""
        quick: list[int] = []
        others: list[int] = []
        for index, work in enumerate(self._works):
            (quick if work.is_quick else others).append(index)
        return quick, others

    def _read(self, indices: Sequence[int]) -> None:
        """Reads the images at `indices`, on any thread. Raises `DeadlineExceeded`."""
        for index in indices:
            work = self._works[index]
            if self._deadline_ns is not None:
                left_ns = self._deadline_ns - time.monotonic_ns()
                if left_ns <= 0 or left_ns < self._times.least_ns((work,)):
                    self._times.refused((work,))
                    raise DeadlineExceeded("the deadline passed, or would pass, before all images were read")
            started_ns = time.thread_time_ns()
            try:
                self._rows[index] = self._preprocessor.row(self._images[index])
            except ServingError as error:
                self.errors[index] = _without_frames(error)
            else:
                self._times.learn(work, time.thread_time_ns() - started_ns)


def _without_frames(error: ServingError) -> ServingError:
    """Drops the tracebacks: their frames refer to the file and, by way of this request's errors, to themselves.

    This cycle would keep the file in memory until the garbage collector runs.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
