"""One choice a row: pure functions of scores, uniforms and the settings of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .request import Sampling

BLOCK = 128
"""Choices that are summed up together before one is drawn."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """What the settings of the running rows have in common, known on the host: what none of them needs is left out."""

    tempered: bool = False
    greedy: bool = False
    """One row at least takes the likeliest choice."""
    all_greedy: bool = False
    most_kept: int = 0
    """The largest top_k; 0 where no row has one."""
    nucleus: bool = False
    """One row at least has a top_p."""
    limited: bool = False
    """One row at least has a limit of images."""
    guided: bool = False

    @classmethod
    def of(cls, settings: Sequence[Sampling]) -> Kinds:
        return cls(
            tempered=any(item.temperature not in (0, 1) for item in settings),
            greedy=any(item.temperature == 0 for item in settings),
            all_greedy=all(item.temperature == 0 for item in settings),
            most_kept=max((item.top_k for item in settings), default=0),
            nucleus=any(item.top_p < 1 for item in settings),
            limited=any(item.max_images is not None for item in settings),
            guided=any(item.guided for item in settings),
        )


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of n rows, a tensor each, [n]; None where all have what does nothing."""

    temperature: Tensor | None = None
    """0 is greedy decoding."""
    top_k: Tensor | None = None
    top_p: Tensor | None = None


def draw(scores: Tensor, uniform_n: Tensor, rules: Rules, kinds: Kinds) -> tuple[Tensor, Tensor]:
    """One choice a row by the inverse of the cumulative distribution, and its log-prob, [n] each; scores [n, choices].

    A row's choice does not depend on what the settings of the others are.
    """
    if kinds.all_greedy:
        return scores.argmax(-1), torch.zeros(len(scores), device=scores.device)
    untouched, greedy = scores, None
    if rules.temperature is not None:
        greedy = rules.temperature == 0
        scores = scores / rules.temperature.masked_fill(greedy, 1)[:, None]
    if rules.top_k is not None:
        scores = _most_likely(scores, rules.top_k, min(kinds.most_kept, scores.shape[-1]))
    if rules.top_p is not None:
        scores = _nucleus(scores, rules.top_p)
    p = scores.softmax(-1)
    choice = _invert(p, uniform_n[:, None])
    logp = p.gather(1, choice).log_().squeeze(1)
    choice = choice.squeeze(1)
    if greedy is None or not kinds.greedy:
        return choice, logp
    return torch.where(greedy, untouched.argmax(-1), choice), logp.masked_fill_(greedy, 0)


def _most_likely(scores: Tensor, top_k: Tensor, most: int) -> Tensor:
    least = scores.topk(most).values.gather(1, (top_k - 1).clamp(0, most - 1)[:, None])
    return scores.masked_fill((scores < least) & (top_k > 0)[:, None], float("-inf"))


def _nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    ordered, order = scores.softmax(-1).sort(-1, descending=True)
    beyond = (ordered.cumsum(-1) - ordered >= top_p[:, None]) & (top_p < 1)[:, None]
    return scores.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))


def _invert(p: Tensor, uniform_n1: Tensor) -> Tensor:
    """The choice in whose share of [0, 1) the uniform falls, [n, 1], for probabilities [n, choices].

    In a large vocabulary first a block is found, then the choice in it: running sums of all cost more than the scores.
    """
    choices = p.shape[1]
    if choices < 64 * BLOCK:
        return _find(p, uniform_n1)[0]
    whole = choices // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(1, (-1, BLOCK)).sum(-1)
    if whole < choices:
        sums = torch.cat([sums, p[:, whole:].sum(1, keepdim=True)], 1)
    block, cumulative, target = _find(sums, uniform_n1)
    rest = target - cumulative.gather(1, block) + sums.gather(1, block)
    inside = block * BLOCK + torch.arange(BLOCK, device=p.device)
    part = p.gather(1, inside.clamp(max=choices - 1)).masked_fill_(inside >= choices, 0)
    return block * BLOCK + _find(part, rest / sums.gather(1, block))[0]


def _find(p: Tensor, uniform_n1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The choice, the running sums, and where among them the uniform falls."""
    cumulative = p.cumsum(1, dtype=torch.float64)
    # Scaled by the last sum, and kept inside it: what is chosen has a share, however sums were rounded.
    target = uniform_n1.clamp(0, 1 - 1e-12) * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, target, right=True).clamp_(max=p.shape[1] - 1)
    return choice, cumulative, target


def uniforms(seed: int, row: int, length: int, depth: int = 1) -> np.ndarray:
    """Float64 [length, depth] of a counter-based generator keyed by (seed, row)."""
    return np.random.Generator(np.random.Philox(key=[seed, row])).random((length, depth))
