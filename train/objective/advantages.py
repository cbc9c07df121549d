"""Advantages of extended GRPO, as pure functions over tensors.

R is the number of rollouts, whole groups of G one after the other; K segments of a completion; C completion tokens. A
reward that does not apply is NaN: it takes part in no mean and contributes nothing. A group of one, and a group without
variance, has advantage zero.

How segments are counted where documents differ: a segment is a text or an image as it stands in the answer, so two
adjacent images are two segments and text after the last image is one of its own. Segment k is compared with segment k
of the other rollouts that have one, whatever their modalities; a segment that no other rollout has is a group of one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Baseline = Literal["mean", "leave-one-out"]

SMALLEST_STD = 1e-6
"""Below this a group is dead: its rewards agree up to rounding, and nothing can be learned from it."""


def outcome_advantages(
    rewards_R: Tensor, group_size: int, baseline: Baseline = "mean", scale: bool = True, floor: float = SMALLEST_STD
) -> Tensor:
    """(r - mean of the group) / std of the group, [R] (DeepSeekMath, arXiv 2402.03300; U-GRPO, arXiv 2603.09538).

    The std is the population's: with it the two rollouts of a pair get exactly 1 and -1, as the paper's Figure 1 shows.
    `leave-one-out`: the baseline is the mean of the others (RLOO, arXiv 2402.14740). Without `scale` there is no
    division (Dr. GRPO, arXiv 2503.20783). What is divided by is at least `floor`, so that noise stays small.
    """
    return _normalise(rewards_R.view(-1, group_size), baseline, scale, floor).nan_to_num(0.0).reshape(-1)


def segment_advantages(
    rewards_RK: Tensor,
    group_size: int,
    pooled: bool = False,
    baseline: Baseline = "mean",
    scale: bool = True,
    floor: float = SMALLEST_STD,
) -> Tensor:
    """Segment rewards normalised in their group, [R, K]; NaN where a segment is missing.

    By default column k is compared with column k of the other rollouts; `pooled` normalises over all segment rewards of
    the group (DeepSeekMath's process supervision, section 4.1.3). The rest as in `outcome_advantages`.
    """
    segments = rewards_RK.shape[1]
    groups = rewards_RK.view(-1, group_size, segments)
    if pooled and group_size > 1:
        return _normalise(groups.flatten(1), baseline, scale, floor).view(-1, segments)
    by_index = _normalise(groups.transpose(1, 2).flatten(0, 1), baseline, scale, floor)
    return by_index.view(-1, segments, group_size).transpose(1, 2).reshape(-1, segments)


def process_advantages(normalised_RK: Tensor, segment_RC: Tensor, discount: float = 1.0, mean: bool = False) -> Tensor:
    """A token's advantage: the sum over its own and all later segments, [R, C].

    A[i, t] = sum over segments j >= k of discount^(j - k) r_hat[i, j], k the segment of token t. Discount 1 is U-GRPO's
    (and DeepSeekMath's, section 4.1.3); at 0 a token answers for its own segment alone, which is right where later
    segments do not depend on earlier ones. `segment_RC` is the segment of each token; a token past the last segment
    (`<eos>`), or padding (negative), gets 0. With `mean` the sum is divided by the weights of the segments in it, so
    that long documents do not get larger early advantages. A missing segment (NaN) adds nothing, to the sum or to the
    weights.
    """
    present_RK = (~normalised_RK.isnan()).float()
    total, weight = torch.zeros_like(present_RK[:, 0]), torch.zeros_like(present_RK[:, 0])
    columns = []
    for k in reversed(range(normalised_RK.shape[1])):
        total = normalised_RK[:, k].nan_to_num(0.0) + discount * total
        weight = present_RK[:, k] + discount * weight
        columns.append(total / weight.clamp(min=SMALLEST_STD) if mean else total)
    suffix_RK = torch.stack(columns[::-1], 1)
    inside = (segment_RC >= 0) & (segment_RC < suffix_RK.shape[1])
    return suffix_RK.gather(1, segment_RC.clamp(0, suffix_RK.shape[1] - 1)) * inside


def dead_groups(rewards_R: Tensor, group_size: int) -> Tensor:
    """Share of groups whose rewards do not vary: they teach nothing, and a run of them looks healthy."""
    return (_std(rewards_R.view(-1, group_size)) < SMALLEST_STD).float().mean()


def _std(values: Tensor) -> Tensor:
    mean = values.nanmean(1, keepdim=True)
    return ((values - mean) ** 2).nanmean(1).sqrt().nan_to_num(0.0)


def _normalise(values: Tensor, baseline: Baseline, scale: bool, floor: float) -> Tensor:
    """Rows less their baseline and over their std, NaN left alone; rows without variance to zero."""
    std = _std(values)[:, None]
    centred = values - values.nanmean(1, keepdim=True)
    if baseline == "leave-one-out":  # r_i - mean of the others = n / (n - 1) (r_i - mean of all)
        present = (~values.isnan()).sum(1, keepdim=True)
        centred = centred * present / (present - 1).clamp(min=1)
    centred = centred / std.clamp(min=max(floor, SMALLEST_STD)) if scale else centred
    return torch.where(std >= SMALLEST_STD, centred, 0 * values)


def best_of_group(rewards_R: Tensor, group_size: int) -> Tensor:
    """1 for the best rollout of each group (the first of equals), 0 for the others, [R]; 0 throughout a dead group."""
    groups = rewards_R.view(-1, group_size)
    best = torch.nn.functional.one_hot(groups.nan_to_num(-torch.inf).argmax(1), group_size).float()
    return (best * (_std(groups) >= SMALLEST_STD)[:, None]).reshape(-1)
