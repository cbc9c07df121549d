"""What is asked of the sampler, and what it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...configs.errors import InputError
from ..tokens.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy decoding."""
    top_k: int = 0
    """Keep the k likeliest choices; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of choices with this probability."""
    max_images: int | None = None
    guidance: float = 1.0
    """Classifier-free guidance of image tokens; 1 is none. The row then has a second one without its prompt."""
    begin_with_image: bool = False
    """The answer's first token is `<boi>`, whatever the model thinks of it."""
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": 0 <= self.temperature < math.inf,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "max_images": self.max_images is None or self.max_images >= 0,
            "guidance": 0 <= self.guidance < math.inf,
            "seed": 0 <= self.seed < 2**63,
        }
        if wrong := [name for name, holds in ranges.items() if not holds]:
            raise InputError(f"sampling: {wrong[0]} = {getattr(self, wrong[0])} is out of range")

    @property
    def guided(self) -> bool:
        return self.guidance != 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One completion. Its answer is a function of these three and the weights, whatever its neighbours are."""

    prompt: TokenSequence
    """The same object in several requests is prefilled once."""
    sampling: Sampling
    row: int
    """With the seed, the key of its random stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sampled completion."""

    ids_C: Tensor
    """Joint ids, int64 [C], with `<eos>` unless the length limit came first."""
    logp_C: Tensor
    """Log-prob of each id as it was sampled, float32 [C]; 0 for a forced one and in greedy decoding."""
