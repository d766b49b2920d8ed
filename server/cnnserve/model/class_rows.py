"""What the output rows of a model are, and the probabilities of the classes that `Classify` makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnserve.batching.row_check import RowKind
from cnnserve.datatypes import Rows, TensorSpec
from cnnserve.model.classification import are_probabilities, softmax
from cnnserve.repository.manifest import Manifest
from cnnserve.repository.onnx_ending import Ending

# Independent classes that are at least this probable are an image's classes.
THRESHOLD = 0.5
_IMPORT = "publish it with cnnserve import"


@dataclass(frozen=True)
class ClassRows:
    """`kind`: what the values of a row are; ANY are logits, of which `Classify` makes probabilities by a softmax.

    With `single`, a row is one probability p, and there are two classes, 1 - p and p. `refusal` says why the rows hold
    no classes, and what to do.
    """

    kind: RowKind
    single: bool = False
    refusal: str = ""

    @property
    def applies_softmax(self) -> bool:
        """Whether `Classify` applies a softmax."""
        return self.kind is RowKind.ANY and not self.refusal

    @property
    def independent(self) -> bool:
        """Whether each class has a probability of its own, so that an image may have several classes or none."""
        return self.kind is RowKind.SIGMOID and not self.single

    def __str__(self) -> str:
        if self.refusal:
            return f"no scores of classes, so Classify is refused: {self.refusal}"
        if self.single:
            return "one probability each, by a sigmoid, so Classify makes two classes of it"
        if self.independent:
            return "independent probabilities, by sigmoids, so Classify leaves them as they are"
        return "not probabilities, so Classify applies a softmax" if self.applies_softmax else "probabilities"

    @property
    def activation(self) -> str:
        """What the values went through, as ModelConfig reports it."""
        if self.refusal:
            return "unknown"
        if self.applies_softmax:
            return "softmax, applied by Classify"
        return "softmax, in the model" if self.kind is RowKind.SOFTMAX else "sigmoid, in the model"

    def probabilities(self, rows: Rows) -> Rows:
        """Returns the probabilities (N, classes) of the classes for the rows (N, ...) of the model."""
        scores = rows.reshape(len(rows), -1)
        if self.applies_softmax:
            return softmax(scores)
        return np.concatenate([1 - scores, scores], axis=1) if self.single else scores


def stated(manifest: Manifest) -> ClassRows:
    """Returns what the manifest says of the rows."""
    return ClassRows(RowKind(manifest.activation))


def decide(output: TensorSpec, ending: Ending, runs: Sequence[Rows]) -> ClassRows:
    """Decides what the rows of an output are that no manifest describes. `runs`: rows of some runs, if there are any.

    `ending` is what the graph shows. Only a single value, and values of 0 to 1 that no sigmoid makes, stay unclear.
    """
    if not output.datatype.startswith("FP"):
        return _refused(f"output '{output.name}' is {output.datatype}; name the output with the scores in config.pbtxt")
    sizes = runs[0].shape[1:] if runs else output.shape[1:]
    if sum(size != 1 for size in sizes) > 1:
        return _refused(f"output '{output.name}' has rows of shape {list(sizes)}, expected one value for each class")
    if all(size == 1 for size in sizes):
        if ending == "sigmoid":
            return ClassRows(RowKind.SIGMOID, single=True)
        return _refused(
            f"output '{output.name}' has one value for an image, and the graph does not end in a sigmoid; if the value "
            f"is a logit, {_IMPORT} --activation sigmoid"
        )
    if ending == "sigmoid":
        return ClassRows(RowKind.SIGMOID)
    return _many(output, ending, [run.reshape(len(run), -1) for run in runs])


def _many(output: TensorSpec, ending: Ending, runs: Sequence[Rows]) -> ClassRows:
    if all(map(are_probabilities, runs)) if runs else ending == "softmax":
        return ClassRows(RowKind.SOFTMAX)
    if runs and all(run.size and run.min() >= 0 and run.max() <= 1 for run in runs) and ending == "unknown":
        return _refused(
            f"all values of output '{output.name}' are from 0 to 1, but rows do not sum to 1, as if each class had its "
            f"own sigmoid, and the graph does not end in one; {_IMPORT} --activation softmax if they are logits"
        )
    return ClassRows(RowKind.ANY)


def _refused(reason: str) -> ClassRows:
    return ClassRows(RowKind.ANY, refusal=reason)
