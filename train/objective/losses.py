"""Losses as pure functions: tensors in, `(loss, metrics)` out. No config, no logging, no distributed call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ...models.tokens.sequence import TokenBatch

Normalisation = Literal["token", "sequence", "segment", "modality-balanced"]
NORMALISATIONS: tuple[Normalisation, ...] = get_args(Normalisation)
Importance = Literal["token", "segment", "sequence"]
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
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, k3 KL to a reference, entropy bonus; pairs are (text, image).

    loss = - sum_t w_t [ min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) - beta * (exp(d) - d - 1) + bonus * H ],
    rho from `importance_ratio`, d = ref_logp - logp (k3: Schulman, "Approximating KL divergence"), H the entropy.
    Metrics are sums over this call's tokens, by modality: divide them by `tokens/...`; all but `signal/...`, the L1
    norm of the surrogate's gradient with respect to the log-ratios, which adds up over an optimizer step.
    """
    mask_BT, image_BT = tokens.trained_BT, tokens.image_BT
    low = 1 - torch.where(image_BT, epsilon[1], epsilon[0])
    high = 1 + torch.where(image_BT, epsilon_high[1], epsilon_high[0])
    clipped_BT = ratio_BT.clamp(low, high)
    objective_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    kl_BT = torch.zeros_like(logp_BT)
    if ref_logp_BT is not None:
        gap_BT = ref_logp_BT - logp_BT
        kl_BT = gap_BT.exp() - gap_BT - 1
        objective_BT = objective_BT - torch.where(image_BT, beta[1], beta[0]) * kl_BT
    if entropy_BT is not None and any(entropy_bonus):
        objective_BT = objective_BT + torch.where(image_BT, entropy_bonus[1], entropy_bonus[0]) * entropy_BT
    loss = -(objective_BT * weights_BT)[mask_BT].sum()

    is_clipped_BT = objective_is_clipped(ratio_BT, clipped_BT, advantages_BT)
    signal_BT = (weights_BT * ratio_BT * advantages_BT).abs().masked_fill(is_clipped_BT, 0)
    metrics = {}
    for name, at in (("text", mask_BT & ~image_BT), ("image", mask_BT & image_BT)):
        metrics[f"tokens/{name}"] = at.sum()
        metrics[f"ratio/{name}"] = ratio_BT[at].sum()
        metrics[f"clip_fraction/{name}"] = (is_clipped_BT & at).sum()
        metrics[f"advantage/{name}"] = advantages_BT[at].abs().sum()
        metrics[f"signal/{name}"] = signal_BT[at].sum()
        if ref_logp_BT is not None:
            metrics[f"kl/{name}"] = kl_BT[at].sum()
        if entropy_BT is not None:
            metrics[f"entropy/{name}"] = entropy_BT[at].sum()
    return loss, {name: value.detach().float() for name, value in metrics.items()}


def objective_is_clipped(ratio: Tensor, clipped: Tensor, advantages: Tensor) -> Tensor:
    """True where clipping is active: the token gets no policy gradient."""
    return (ratio * advantages > clipped * advantages) & (ratio != clipped)


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
