"""Losses as pure functions: tensors in, `(loss, metrics)` out. No config, no logging, no distributed call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...models.tokens.sequence import TokenBatch
from .kl import KL, kl_estimate

Normalisation = Literal["token", "sequence", "segment", "modality-balanced"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
Importance = Literal["token", "segment", "sequence"]
Surrogate = Literal["clip", "cispo"]
Pair = tuple[float, float]
"""A setting of (text, image)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a loss knows of a batch's tokens, each [B, T]. Rows may be packed; untrained tokens may have any number."""

    trained_BT: Tensor
    image_BT: Tensor
    sequence_BT: Tensor
    """Number of the sequence a token is in, in its row."""
    segment_BT: Tensor
    """Number of the segment a token is in, in its row."""

    def unit_BT(self, level: Literal["segment", "sequence"]) -> Tensor:
        return self.sequence_BT if level == "sequence" else self.segment_BT


def tokens_of(batch: TokenBatch, text_size: int) -> Tokens:
    """All trainable tokens of a batch; joint ids from `text_size` on are image codes."""
    return Tokens(batch.trainable_BT, batch.ids_BT >= text_size, batch.sequence_BT, batch.segment_BT)


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of a loss, summed over all rows of an optimizer step: micro-batches and ranks alike."""

    text: Tensor
    image: Tensor
    """Trained tokens of each modality."""
    sequences: Tensor
    segments: Tensor
    """Sequences and segments with at least one trained token."""

    @classmethod
    def of(cls, tokens: Tokens) -> Counts:
        image = (tokens.trained_BT & tokens.image_BT).sum()
        trained = tokens.trained_BT.float()
        sequences, segments = (
            (_unit_sums(trained, unit_BT) > 0).sum() for unit_BT in (tokens.sequence_BT, tokens.segment_BT)
        )
        return cls(tokens.trained_BT.sum() - image, image, sequences, segments)

    def stack(self) -> Tensor:
        return torch.stack([self.text, self.image, self.sequences, self.segments])


def token_weights(tokens: Tokens, counts: Counts, normalisation: Normalisation) -> Tensor:
    """Weight of each token, [B, T]; over all rows that `counts` covers the weights sum to 1.

    `token`: all tokens alike (DAPO, arXiv 2503.14476). `sequence`: 1/|Y_i| within a completion, completions alike
    (U-GRPO). `segment`: every sentence and every picture alike, whatever its length. `modality-balanced`: half the
    weight to each modality that occurs, so that hundreds of image tokens do not drown tens of text tokens.
    """
    mask = tokens.trained_BT.float()
    if normalisation == "token":
        return mask / (counts.text + counts.image).clamp(min=1)
    if normalisation == "modality-balanced":
        modalities = (counts.text > 0).float() + (counts.image > 0).float()
        each = torch.where(tokens.image_BT, counts.image, counts.text).clamp(min=1)
        return mask / each / modalities.clamp(min=1)
    units = counts.sequences if normalisation == "sequence" else counts.segments
    return mask / _in_unit(mask, tokens.unit_BT(normalisation)).clamp(min=1) / units.clamp(min=1)


def importance_ratio(logp_BT: Tensor, old_logp_BT: Tensor, tokens: Tokens, level: Importance = "token") -> Tensor:
    """pi / pi_old of each token, [B, T]; 1 where it is not trained.

    At the level of segments or sequences it is the geometric mean over the trained tokens of the sentence, picture or
    sequence that the token is in: exp(mean of log pi / pi_old), GSPO's ratio (arXiv 2507.18071). `old_logp_BT` is the
    sampler's: the behaviour policy. A position of D residual codes is one token; the policy has summed over depth.
    """
    gap_BT = (logp_BT - old_logp_BT).masked_fill(~tokens.trained_BT, 0)
    if level != "token":
        unit_BT = tokens.unit_BT(level)
        size_BT = _in_unit(tokens.trained_BT.float(), unit_BT).clamp(min=1)
        gap_BT = (_in_unit(gap_BT, unit_BT) / size_BT).masked_fill(~tokens.trained_BT, 0)
    return gap_BT.exp()


def policy_loss(
    logp_BT: Tensor,
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    tokens: Tokens,
    weights_BT: Tensor,
    ref_logp_BT: Tensor | None = None,
    entropy_BT: Tensor | None = None,
    epsilon: Pair = (0.2, 0.2),
    epsilon_high: Pair = (0.2, 0.2),
    beta: Pair = (0.0, 0.0),
    entropy_bonus: Pair = (0.0, 0.0),
    *,
    surrogate: Surrogate = "clip",
    delta: Pair = (math.inf, math.inf),
    positive_nll: Pair = (0.0, 0.0),
    kl: KL = "k3",
    kl_clamp: float = math.inf,
    token_ratio_BT: Tensor | None = None,
    full_kl_BT: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Surrogate of the policy gradient, KL to a reference, entropy bonus, positive NLL; pairs are (text, image).

    loss = - sum_t w_t [ S_t - beta KL_t + bonus H_t + nu [A_t > 0] log pi_t ], S from `surrogate_objective`, H the
    entropy, nu the weight of the cross-entropy of tokens with a positive advantage (`positive_nll`; VAPO, arXiv
    2504.05118). KL_t is `kl_estimate` of `ref_logp_BT` with the ratio of the single token (`token_ratio_BT` where
    `ratio_BT` is that of units), or for `full` the `full_kl_BT` over all choices.
    Metrics are sums over this call's tokens, by modality: divide them by `tokens/...`; all but `signal/...`, the L1
    norm of the surrogate's gradient with respect to the log-ratios, which adds up over an optimizer step.
    """
    mask_BT, image_BT = tokens.trained_BT, tokens.image_BT
    objective_BT, slope_BT, is_clipped_BT = surrogate_objective(
        logp_BT, ratio_BT, advantages_BT, image_BT, epsilon, epsilon_high, delta, surrogate
    )
    figures = {"ratio": ratio_BT, "clip_fraction": is_clipped_BT, "advantage": advantages_BT.abs()}
    if any(positive_nll):
        objective_BT = objective_BT + _of(image_BT, positive_nll) * (advantages_BT > 0) * logp_BT
    kl_BT = full_kl_BT
    if kl != "full" and ref_logp_BT is not None:
        token_ratio_BT = ratio_BT if token_ratio_BT is None else token_ratio_BT
        kl_BT, figures["kl_clamped"] = kl_estimate(logp_BT, ref_logp_BT, token_ratio_BT, kl, kl_clamp)
    if kl_BT is not None:
        figures["kl"] = kl_BT
        objective_BT = objective_BT - _of(image_BT, beta) * kl_BT
    if entropy_BT is not None:
        figures["entropy"] = entropy_BT
        if any(entropy_bonus):
            objective_BT = objective_BT + _of(image_BT, entropy_bonus) * entropy_BT
    loss = -(objective_BT * weights_BT)[mask_BT].sum()

    metrics = {}
    figures["signal"] = (weights_BT * slope_BT).abs()
    for name, at in (("text", mask_BT & ~image_BT), ("image", mask_BT & image_BT)):
        metrics[f"tokens/{name}"] = at.sum()
        metrics |= {f"{figure}/{name}": value_BT[at].sum() for figure, value_BT in figures.items()}
    return loss, {name: value.detach().float() for name, value in metrics.items()}


def surrogate_objective(
    logp_BT: Tensor,
    ratio_BT: Tensor,
    advantages_BT: Tensor,
    image_BT: Tensor,
    epsilon: Pair,
    epsilon_high: Pair,
    delta: Pair,
    kind: Surrogate,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is maximised at each token, its slope in the token's log-ratio, and where clipping is active; each [B, T].

    clip: min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) (PPO, arXiv 1707.06347). For a negative advantage that is
    unbounded in rho; with `delta` it is at least delta A (dual clip, arXiv 1912.09729; TRL's `delta`), and the token
    gets no gradient beyond.
    cispo: stopgrad(min(rho, 1 + eps_high)) A log pi (MiniMax-M1, arXiv 2506.13585): the weight is clipped, no token
    loses its gradient, and neither `epsilon` nor `delta` is read.
    """
    high_BT = 1 + _of(image_BT, epsilon_high)
    if kind == "cispo":
        weight_BT = ratio_BT.detach().clamp(max=high_BT)
        slope_BT = weight_BT * advantages_BT
        return slope_BT * logp_BT, slope_BT, ratio_BT > high_BT
    clipped_BT = ratio_BT.clamp(1 - _of(image_BT, epsilon), high_BT)
    limit_BT = _of(image_BT, delta)
    objective_BT = torch.minimum(ratio_BT.clamp(max=limit_BT) * advantages_BT, clipped_BT * advantages_BT)
    is_clipped_BT = (ratio_BT * advantages_BT > clipped_BT * advantages_BT) & (ratio_BT != clipped_BT)
    is_clipped_BT = is_clipped_BT | ((advantages_BT < 0) & (ratio_BT > limit_BT))
    return objective_BT, (ratio_BT * advantages_BT).masked_fill(is_clipped_BT, 0), is_clipped_BT


def _of(image_BT: Tensor, pair: Pair) -> Tensor:
    """Each token's part of a setting of (text, image)."""
    return torch.where(image_BT, pair[1], pair[0])


def imitation_loss(logp_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Next-token cross-entropy of both modalities: L = - sum_t w_t log P(y_t | x, y_<t) (U-GRPO, stage I)."""
    return -(logp_BT * weights_BT).sum()


def _unit_sums(values_BT: Tensor, unit_BT: Tensor) -> Tensor:
    """Sums over the tokens of each unit of a row, [B, units]."""
    unit_BT = unit_BT.clamp(min=0)
    sums = values_BT.new_zeros(len(unit_BT), int(unit_BT.max()) + 1 if unit_BT.numel() else 1)
    return sums.scatter_add(1, unit_BT, values_BT)


def _in_unit(values_BT: Tensor, unit_BT: Tensor) -> Tensor:
    """At each token, the sum over the tokens of its unit, [B, T]."""
    return _unit_sums(values_BT, unit_BT).gather(1, unit_BT.clamp(min=0))
