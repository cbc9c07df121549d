"""What is asked of the sampler, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ...configs.bounds import Guidance, NoneOrMore, OneOrMore, Range, Temperature, TopP
from ...configs.schema import check_ranges
from ..tokens.sequence import TokenSequence


@dataclass(frozen=True, slots=True)
class Sampling:
    max_new_tokens: OneOrMore = 256
    temperature: Temperature = 1.0
    """0 is greedy decoding."""
    top_k: NoneOrMore = 0
    """Keep the k likeliest choices; 0 keeps all."""
    top_p: TopP = 1.0
    """Keep the smallest set of choices with this probability."""
    max_images: NoneOrMore | None = None
    guidance: Guidance = 1.0
    """Classifier-free guidance of image tokens; 1 is none. The row then has a second one without its prompt."""
    begin_with_image: bool = False
    """The answer's first token is `<boi>`, whatever the model thinks of it."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0

    def __post_init__(self) -> None:
        check_ranges(self, "sampling")

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
