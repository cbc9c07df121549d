"""Losses as pure functions: tensors in, `(loss, metrics)` out. No config, no logging, no distributed call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Normalisation = Literal["token", "sequence", "modality-balanced"]
NORMALISATIONS: tuple[Normalisation, ...] = ("token", "sequence", "modality-balanced")


@dataclass(frozen=True, slots=True)
class Counts:
    """Denominators of a loss, summed over all rows of an optimizer step: micro-batches and ranks alike."""

    text: Tensor
    image: Tensor
    """Trained tokens of each modality."""
    sequences: Tensor
    """Rows with at least one trained token."""

    @classmethod
    def of(cls, mask_BT: Tensor, image_BT: Tensor) -> Counts:
        image = (mask_BT & image_BT).sum()
        return cls(mask_BT.sum() - image, image, mask_BT.any(1).sum())


def token_weights(mask_BT: Tensor, image_BT: Tensor, counts: Counts, normalisation: Normalisation) -> Tensor:
    """Weight of each token, [B, T]; over all rows that `counts` covers the weights sum to 1.

    `token`: all tokens alike. `sequence`: 1/|Y_i| within a completion, completions alike (U-GRPO). `modality-balanced`:
    half the weight to each modality that occurs, so that hundreds of image tokens do not drown tens of text tokens.
    """
    mask = mask_BT.float()
    if normalisation == "token":
        return mask / (counts.text + counts.image).clamp(min=1)
    if normalisation == "sequence":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / counts.sequences.clamp(min=1)
    modalities = (counts.text > 0).float() + (counts.image > 0).float()
    each = torch.where(image_BT, counts.image, counts.text).clamp(min=1)
    return mask / each / modalities.clamp(min=1)


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    image_BT: Tensor,
    weights_BT: Tensor,
    ref_logp_BT: Tensor | None = None,
    epsilon: tuple[float, float] = (0.2, 0.2),
    epsilon_high: tuple[float, float] = (0.2, 0.2),
    beta: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate plus k3 KL to a reference; pairs are (text, image).

    loss = - sum_t w_t [ min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) - beta * (exp(d) - d - 1) ],
    rho = exp(logp - old_logp), d = ref_logp - logp (k3: Schulman, "Approximating KL divergence"). `old_logp_BT` is the
    sampler's: the behaviour policy. Metrics are sums over this call's tokens, by modality; divide them by `tokens/...`.
    """
    ratio_BT = (logp_BT - old_logp_BT).masked_fill(~mask_BT, 0).exp()
    low = 1 - torch.where(image_BT, epsilon[1], epsilon[0])
    high = 1 + torch.where(image_BT, epsilon_high[1], epsilon_high[0])
    clipped_BT = ratio_BT.clamp(low, high)
    objective_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    kl_BT = torch.zeros_like(logp_BT)
    if ref_logp_BT is not None:
        gap_BT = ref_logp_BT - logp_BT
        kl_BT = gap_BT.exp() - gap_BT - 1
        objective_BT = objective_BT - torch.where(image_BT, beta[1], beta[0]) * kl_BT
    loss = -(objective_BT * weights_BT)[mask_BT].sum()
    metrics = {}
    for name, at in (("text", mask_BT & ~image_BT), ("image", mask_BT & image_BT)):
        metrics[f"tokens/{name}"] = at.sum()
        metrics[f"ratio/{name}"] = ratio_BT[at].sum()
        metrics[f"clip_fraction/{name}"] = (objective_is_clipped(ratio_BT, clipped_BT, advantages_BT) & at).sum()
        metrics[f"advantage/{name}"] = advantages_BT[at].abs().sum()
        if ref_logp_BT is not None:
            metrics[f"kl/{name}"] = kl_BT[at].sum()
    return loss, {name: value.detach().float() for name, value in metrics.items()}


def objective_is_clipped(ratio: Tensor, clipped: Tensor, advantages: Tensor) -> Tensor:
    """True where clipping is active: the token gets no policy gradient."""
    return (ratio * advantages > clipped * advantages) & (ratio != clipped)


def imitation_loss(logp_BT: Tensor, weights_BT: Tensor) -> Tensor:
    """Next-token cross-entropy of both modalities: L = - sum_t w_t log P(y_t | x, y_<t) (U-GRPO, stage I)."""
    return -(logp_BT * weights_BT).sum()
