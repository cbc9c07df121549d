"""Estimates of KL(pi || ref) that can be a loss: in expectation their gradient is the KL's own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KL = Literal["k3", "k2", "full"]


def kl_estimate(
    logp_BT: Tensor, ref_logp_BT: Tensor, ratio_BT: Tensor, kind: Literal["k3", "k2"], clamp: float
) -> tuple[Tensor, Tensor]:
    """The KL of each sampled token, [B, T], and where its log-ratio was clamped.

    d = log ref - log pi, rho = pi / pi_old of the token. With the sampler's distribution as weights, the mean of

        k3: rho (exp(d) - d - 1)            k2: stopgrad(rho) d^2 / 2

    has the gradient of KL(pi || ref): in both it is -rho d times the score (Schulman, "Approximating KL divergence";
    rho as in DeepSeek-V3.2, arXiv 2512.02556, and TRL; k2 as a loss: arXiv 2510.01555). Without rho, k3 as a loss has
    the gradient of KL(ref || pi) on average. The value of k3 is unbiased, that of k2 is not. rho is the token's own
    whatever the level of the importance ratio: a sequence's would weigh every token's KL by what the others did.

    d is taken within +-clamp, so that one token (pi 1e-4 where ref is 0.5: k3 is 5e3) is no loss of its own. The
    clamped d stands in the gradient, too; a plain `clamp` of k3 would turn it round, and push the token away from ref.
    """
    d_BT = ref_logp_BT - logp_BT
    within_BT = d_BT.detach().clamp(-clamp, clamp)
    clamped_BT = within_BT != d_BT
    d_BT = torch.where(clamped_BT, within_BT + d_BT - d_BT.detach(), d_BT)  # this value, the gradient of d
    if kind == "k2":
        return ratio_BT.detach() * d_BT**2 / 2, clamped_BT
    return ratio_BT * (d_BT.exp() - d_BT - 1), clamped_BT
