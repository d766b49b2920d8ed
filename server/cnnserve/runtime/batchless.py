"""Models without a batch dimension: one image, without a dimension for it, or values without a dimension for the image.

Such a model is served as one with the fixed batch size 1, so all else of the server knows nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnserve.datatypes import Rows, TensorSpec

_CHANNELS = (1, 3)
_IMAGE_RANK = 3


@dataclass(frozen=True)
class Batchless:
    """What an ONNX file lacks: the dimension of its input, and those of some outputs (by their index)."""

    input: bool = False
    outputs: frozenset[int] = frozenset()

    @property
    def is_plain(self) -> bool:
        """Whether the file has all its batch dimensions."""
        return not self.input and not self.outputs

    def specs(self, specs: Sequence[TensorSpec], lacking: Sequence[int]) -> tuple[TensorSpec, ...]:
        """Returns the specs with a batch dimension of 1 in front of those that are `lacking` one."""
        return tuple(
            replace(spec, shape=(1, *spec.shape), unbatched=True) if index in lacking else spec
            for index, spec in enumerate(specs)
        )

    def fed(self, batch: Rows) -> Rows:
        """Returns what the file takes for a batch of one row."""
        return batch[0] if self.input else batch

    def returned(self, outputs: Sequence[Rows]) -> list[Rows]:
        """Returns the outputs as those of a batch of one row."""
        return [output[np.newaxis] if index in self.outputs else output for index, output in enumerate(outputs)]


def of(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Batchless:
    """Returns what a file lacks: `[3, 8, 8]` in and `[5]` out is an image, as is `[1, 3, 8, 8]` in and `[5]` out."""
    if len(inputs) != 1 or not inputs[0].shape:
        return Batchless()
    shape = inputs[0].shape
    image = len(shape) == _IMAGE_RANK and shape[0] > 0 and (shape[0] in _CHANNELS or shape[-1] in _CHANNELS)
    if image and all(len(spec.shape) <= 1 for spec in outputs):
        return Batchless(True, frozenset(range(len(outputs))))
    if shape[0] != 1:
        return Batchless()
    # Of one image, more than one value in one dimension: its classes.
    flat = (index for index, spec in enumerate(outputs) if len(spec.shape) == 1 and spec.shape[0] > 1)
    return Batchless(False, frozenset(flat))
