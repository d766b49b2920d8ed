"""What a network returns, and what is added to that. It imports no large packages, so that `--help` is fast."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Output:
    """What a network or an imported file returns, and what the published file adds to that.

    `activation` is that of the published probabilities: "softmax" if they sum to 1. `adds` is the operator that makes
    them of logits. With `two_classes` the network has one probability p for an image, and 1 - p is put in front.
    """

    activation: Literal["softmax", "sigmoid"] = "softmax"
    adds: Literal["softmax", "sigmoid"] | None = None
    two_classes: bool = False

    @property
    def by_network(self) -> bool:
        """Whether the network itself returns the probabilities."""
        return self.adds is None and not self.two_classes

    def described(self) -> str:
        """Returns what the network returns and what is added, for people."""
        if self.two_classes:
            made = "one probability" if self.adds is None else "one logit; a sigmoid is added"
            return f"{made}; class 0 gets the rest to 1"
        if self.adds is not None:
            return f"logits; a {self.adds} is added"
        return "probabilities" if self.activation == "softmax" else "probabilities that are independent (sigmoid)"


# Networks usually return logits.
LOGITS = Output("softmax", "softmax")
