"""An entropy coefficient that holds the entropy of each modality at a target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .losses import Pair

MODALITIES = ("text", "image")


def adapted(coefficient: float, entropy: float, target: float, step: float, most: float) -> float:
    """The coefficient after an optimizer step: `step` more where the entropy was below its target, else `step` less.

    Skywork-OR1, arXiv 2505.22312, section 4; TRL's `use_adaptive_entropy`.
    """
    return min(max(coefficient + (step if entropy < target else -step), 0.0), most)


class EntropyControl:
    """The entropy bonus of each modality. Without a target it is what the configuration says.

    With one, it is paid only in the steps after one whose entropy was below it.
    """

    def __init__(self, bonus: Pair, target: Pair | None, step: float, most: float):
        self.target, self.step, self.most = target, step, most
        self.coefficients = list(bonus)
        self.paid = [target is None] * 2
        self.sums = [[0.0, 0.0], [0.0, 0.0]]
        """Entropy and tokens of each modality in this optimizer step, on this process."""

    @property
    def pair(self) -> Pair:
        text, image = (coefficient * paid for coefficient, paid in zip(self.coefficients, self.paid, strict=True))
        return text, image

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Takes in the sums of a micro-batch."""
        for sums, name in zip(self.sums, MODALITIES, strict=True):
            sums[0] += float(metrics[f"entropy/{name}"])
            sums[1] += float(metrics[f"tokens/{name}"])

    def update(self, totals: list[list[float]]) -> None:
        """Ends an optimizer step whose sums over all processes these are; a modality without a token stays as it is."""
        assert self.target is not None, "there is nothing to hold"
        for index, ((entropy, tokens), target) in enumerate(zip(totals, self.target, strict=True)):
            if tokens:
                mean = entropy / tokens
                self.coefficients[index] = adapted(self.coefficients[index], mean, target, self.step, self.most)
                self.paid[index] = mean <= target
        self.sums = [[0.0, 0.0], [0.0, 0.0]]

    def state_dict(self) -> dict[str, Any]:
        return {"coefficients": [*self.coefficients], "paid": [*self.paid], "sums": [[*sums] for sums in self.sums]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coefficients, self.paid = [*state["coefficients"]], [*state["paid"]]
        self.sums = [[*sums] for sums in state["sums"]]
