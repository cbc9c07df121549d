"""Advantages of extended GRPO, as pure functions over tensors.

R is the number of rollouts, whole groups of G one after the other; K segments of a completion; C completion tokens. A
reward that does not apply is NaN: it takes part in no mean and contributes nothing. A group of one, and a group without
variance, has advantage zero.

How segments are compared where documents differ: a segment is a text or an image as it stands in the answer, so two
adjacent images are two segments and text after the last image is one of its own. The k-th text is compared with the
k-th text of the other rollouts that have one, the k-th image with the k-th image; one that no other rollout has is a
group of one. What an answer lacks or has too many of is counted by `miscounts` and costs by `miscount_costs`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .spread import SPREAD_FLOOR

Baseline = Literal["mean", "leave-one-out", "score-weighted", "score-weighted-leave-one-out"]

SMALLEST_STD = 1e-6
"""Below this rewards agree up to rounding, and their differences are set to zero."""


def outcome_advantages(
    rewards_R: Tensor,
    group_size: int,
    baseline: Baseline = "mean",
    scale: bool = True,
    floor: float = SPREAD_FLOOR,
    score_norm_R: Tensor | None = None,
) -> Tensor:
    """(r - baseline of the group) / max(std of the group, floor), [R] (DeepSeekMath, arXiv 2402.03300; U-GRPO, arXiv
    2603.09538).

    The std is the population's: with it the two rollouts of a pair get exactly 1 and -1, as the paper's Figure 1 shows.
    Baselines: the `mean` of the group; `leave-one-out`, the mean of the others (RLOO, arXiv 2402.14740);
    `score-weighted`, the mean weighted by |score|^2 (`score_norm_R`, see `score_norms`), the constant that minimises
    the variance of the gradient (Weaver and Tao, UAI 2001; Greensmith et al., JMLR 5, 2004; with the length in place of
    |score|^2 OPO, arXiv 2505.23585), and the same over the others. Without `scale` there is no division (Dr. GRPO,
    arXiv 2503.20783).

    A rare failure, whose score is large, is nearly its own score-weighted baseline and hardly pushes, while the others
    are compared with it: small but steady steps, biased towards zero in a small group. Left out of its own baseline it
    pushes as hard as ever: no bias, but where a group of 8 mostly has one failure or none, the variance of
    `leave-one-out`.
    """
    norms = None if score_norm_R is None else score_norm_R.view(-1, group_size)
    return _normalise(rewards_R.view(-1, group_size), baseline, scale, floor, norms).nan_to_num(0.0).reshape(-1)


def segment_advantages(
    rewards_RK: Tensor,
    kind_RK: Tensor,
    group_size: int,
    pooled: bool = False,
    baseline: Baseline = "mean",
    scale: bool = True,
    floor: float = SPREAD_FLOOR,
    score_norm_RK: Tensor | None = None,
) -> Tensor:
    """Segment rewards normalised in their group, [R, K]; NaN where a segment is missing.

    `kind_RK` is 0 for a text, 1 for an image, -1 where there is no segment. By default the k-th text is compared with
    the k-th text of the other rollouts, the k-th image with the k-th image; `pooled` normalises over all segment
    rewards of the group (DeepSeekMath's process supervision, section 4.1.3). The rest as in `outcome_advantages`.
    """
    segments = rewards_RK.shape[1]
    if pooled and group_size > 1:
        norms = None if score_norm_RK is None else score_norm_RK.view(-1, group_size * segments)
        return _normalise(rewards_RK.view(-1, group_size * segments), baseline, scale, floor, norms).view(-1, segments)
    slot_RK = _slots(kind_RK)
    norms = None if score_norm_RK is None else _by_slot(score_norm_RK, slot_RK, group_size)
    normalised = _normalise(_by_slot(rewards_RK, slot_RK, group_size), baseline, scale, floor, norms)
    return _at_slots(normalised, slot_RK, group_size)


def process_advantages(
    normalised_RK: Tensor,
    segment_RC: Tensor,
    discount: float = 1.0,
    mean: bool = False,
    cost_RE: Tensor | None = None,
) -> Tensor:
    """A token's advantage: the sum over its own and all later segments, [R, C].

    A[i, t] = sum over segments j >= k of discount^(j - k) r_hat[i, j], k the segment of token t. Discount 1 is U-GRPO's
    (and DeepSeekMath's, section 4.1.3); at 0 a token answers for its own segment alone, which is right where later
    segments do not depend on earlier ones. `segment_RC` is the segment of each token; a token past the last segment
    (`<eos>`), or padding (negative), gets 0. With `mean` the sum is divided by the weights of the segments in it, so
    that long documents do not get larger early advantages. A missing segment (NaN) adds nothing, to the sum or to the
    weights.

    `cost_RE`, [R, K + 1], is what the decision to begin each segment costs, and behind the last one the decision to
    end (`miscount_costs`). It falls on the first token of that segment, or on `<eos>`, and on all earlier tokens with
    the discount; it is summed, with `mean` too.
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
    advantages_RC = suffix_RK.gather(1, segment_RC.clamp(0, suffix_RK.shape[1] - 1)) * inside
    return advantages_RC if cost_RE is None else advantages_RC - _decision_costs(cost_RE, segment_RC, discount)


def _decision_costs(cost_RE: Tensor, segment_RC: Tensor, discount: float) -> Tensor:
    """At each token the cost of its own decision, and of later ones with the discount, [R, C]."""
    later = torch.zeros_like(cost_RE[:, 0])
    columns = []
    for e in reversed(range(cost_RE.shape[1])):
        columns.append(later)
        later = discount * (cost_RE[:, e] + later)
    later_RE = torch.stack(columns[::-1], 1)
    at_RC = segment_RC.clamp(0, cost_RE.shape[1] - 1)
    first_RC = torch.ones_like(segment_RC, dtype=torch.bool)
    first_RC[:, 1:] = segment_RC[:, 1:] != segment_RC[:, :-1]
    return (cost_RE.gather(1, at_RC) * first_RC + later_RE.gather(1, at_RC)) * (segment_RC >= 0)


def miscounts(
    kind_RK: Tensor, outcome_R: Tensor, group_size: int, floor: float = SPREAD_FLOOR
) -> tuple[Tensor, Tensor]:
    """How many segments each answer lacks, [R], and which of its segments are too many, bool [R, K].

    How many texts and images belong into an answer is what the best answers of its group have, those whose outcome is
    within `floor` of the best; where they differ, what most of them have; where as many have one number as another, all
    numbers from the least to the largest of these are right. So a model that mostly stops too early is not held to
    what it mostly does, and where outcomes say nothing the majority of the group decides. An answer without an outcome
    in a group that has some takes no part.
    """
    counts_R2 = torch.stack([(kind_RK == kind).sum(1) for kind in (0, 1)], 1)
    counts = counts_R2.view(-1, group_size, 2)
    outcome = outcome_R.view(-1, group_size)
    silent = outcome.isnan().all(1, keepdim=True)
    is_best = silent | (outcome >= outcome.nan_to_num(-torch.inf).amax(1, keepdim=True) - floor)
    takes_part_R = (silent | ~outcome.isnan()).flatten()
    ballots = torch.nn.functional.one_hot(counts, int(counts.max()) + 1) * is_best[..., None, None]
    votes = ballots.sum(1)  # [groups, 2, numbers]
    wins = (votes == votes.amax(-1, keepdim=True)).int()
    least = wins.argmax(-1)
    most = wins.shape[-1] - 1 - wins.flip(-1).argmax(-1)
    least_R2, most_R2 = (bound.repeat_interleave(group_size, 0) for bound in (least, most))
    missing_R = (least_R2 - counts_R2).clamp(min=0).sum(1) * takes_part_R
    surplus_RK = (
        takes_part_R[:, None] & (kind_RK >= 0) & (_ordinals(kind_RK) >= most_R2.gather(1, kind_RK.clamp(min=0)))
    )
    return missing_R, surplus_RK


def miscount_costs(kind_RK: Tensor, missing_R: Tensor, surplus_RK: Tensor, cost: float) -> Tensor:
    """`cost_RE` of `process_advantages`: `cost` for each surplus segment, and at the end for each missing one."""
    ends_RE = torch.nn.functional.one_hot((kind_RK >= 0).sum(1), kind_RK.shape[1] + 1)
    return cost * (ends_RE * missing_R[:, None] + torch.nn.functional.pad(surplus_RK, (0, 1)))


def score_norms(logp_RC: Tensor, chosen_RC: Tensor, segment_RC: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """|score|^2 of whole answers, [R], and by segment, [R, K], up to a factor, from the sampler's log-probs.

    A stated proxy: the score of an answer is the sum of those of its tokens, whose squares add up where they are
    orthogonal, and that of a token has (1 - p)^2 as its chosen logit's share. A token that was certain weighs nothing,
    a rare one much: unlike a length it tells a rare failure from the rule.
    """
    square_RC = (1 - logp_RC.exp()) ** 2 * chosen_RC
    own_RC = square_RC * ((segment_RC >= 0) & (segment_RC < segments))
    by_segment = square_RC.new_zeros(len(square_RC), segments)
    return square_RC.sum(1), by_segment.scatter_add(1, segment_RC.clamp(0, segments - 1), own_RC)


def weigh_negative(advantages: Tensor, weight: float) -> Tensor:
    """Negative advantages times a weight of their own: at 0 only what is better than its baseline is learned from.

    Positive and negative samples are weighted apart in W-REINFORCE (arXiv 2506.01347) and asymmetric REINFORCE (arXiv
    2506.20520).
    """
    return torch.where(advantages < 0, weight * advantages, advantages)


def dead_groups(rewards_R: Tensor, group_size: int, floor: float = SPREAD_FLOOR) -> Tensor:
    """Share of groups whose rewards vary by noise alone: they teach nothing, and a run of them looks healthy."""
    return (_std(rewards_R.view(-1, group_size)) < floor).float().mean()


def best_of_group(rewards_R: Tensor, group_size: int, floor: float = SPREAD_FLOOR) -> Tensor:
    """1 for the best rollout of each group (the first of equals), 0 for the others, [R]; 0 throughout a dead group."""
    return _best(rewards_R.view(-1, group_size), floor).reshape(-1)


def best_segments(
    rewards_RK: Tensor, kind_RK: Tensor, surplus_RK: Tensor, group_size: int, floor: float = SPREAD_FLOOR
) -> Tensor:
    """1 for the best of the segments that are compared with each other (the first of equals), else 0, [R, K].

    Compared as in `segment_advantages`. None is best where they do not differ, and none that its answer has too many.
    """
    slot_RK = _slots(kind_RK)
    rewards = _by_slot(rewards_RK.masked_fill(surplus_RK, torch.nan), slot_RK, group_size)
    return _at_slots(_best(rewards, floor), slot_RK, group_size).nan_to_num(0.0)


def _best(values: Tensor, floor: float) -> Tensor:
    best = torch.nn.functional.one_hot(values.nan_to_num(-torch.inf).argmax(1), values.shape[1]).float()
    return best * (_std(values) >= floor)[:, None]


def _ordinals(kind_RK: Tensor) -> Tensor:
    """Number of each segment among those of its kind in its answer, from 0, [R, K]."""
    return torch.where(kind_RK == 1, (kind_RK == 1).cumsum(1), (kind_RK == 0).cumsum(1)) - 1


def _slots(kind_RK: Tensor) -> Tensor:
    """What each segment is compared as: texts are 0 to K - 1, images K to 2 K - 1, and no segment is 2 K."""
    segments = kind_RK.shape[1]
    return torch.where(kind_RK >= 0, kind_RK * segments + _ordinals(kind_RK), 2 * segments)


def _by_slot(values_RK: Tensor, slot_RK: Tensor, group_size: int) -> Tensor:
    """Rows of what is compared, [groups x slots, G]; NaN where an answer has no such segment."""
    slots = 2 * slot_RK.shape[1] + 1
    table = values_RK.new_full((len(values_RK), slots), torch.nan).scatter(1, slot_RK, values_RK)[:, :-1]
    return table.view(-1, group_size, slots - 1).transpose(1, 2).flatten(0, 1)


def _at_slots(rows: Tensor, slot_RK: Tensor, group_size: int) -> Tensor:
    """The inverse of `_by_slot`, [R, K]; NaN where there is no segment."""
    slots = 2 * slot_RK.shape[1]
    table = rows.view(-1, slots, group_size).transpose(1, 2).reshape(-1, slots)
    return torch.nn.functional.pad(table, (0, 1), value=torch.nan).gather(1, slot_RK)


def _std(values: Tensor) -> Tensor:
    mean = values.nanmean(1, keepdim=True)
    return ((values - mean) ** 2).nanmean(1).sqrt().nan_to_num(0.0)


def _normalise(values: Tensor, baseline: Baseline, scale: bool, floor: float, norms: Tensor | None) -> Tensor:
    """Rows less their baseline and over their std, NaN left alone; rows that agree up to rounding to zero."""
    std = _std(values)[:, None]
    centred = values - values.nanmean(1, keepdim=True)
    present = ~values.isnan()
    if baseline == "leave-one-out":  # r_i - mean of the others = n / (n - 1) (r_i - mean of all)
        count = present.sum(1, keepdim=True)
        centred = centred * count / (count - 1).clamp(min=1)
    elif baseline != "mean":
        assert norms is not None, "weights of the baseline"
        centred = _less_weighted_mean(centred, norms, leave_out=baseline == "score-weighted-leave-one-out")
    centred = centred / std.clamp(min=floor) if scale else centred
    return torch.where(std >= SMALLEST_STD, centred, 0 * values)


def _less_weighted_mean(values: Tensor, weights: Tensor, leave_out: bool) -> Tensor:
    """v_i - sum of w_j v_j / sum of w_j, over all j or all but i; where these weigh nothing, all weigh alike."""
    weights = (weights.double() + SMALLEST_STD) * ~values.isnan()
    weighted = weights * values.double().nan_to_num(0.0)
    total, weight = weighted.sum(1, keepdim=True), weights.sum(1, keepdim=True)
    if leave_out:
        total, weight = total - weighted, weight - weights
    return (values.double() - total / weight.clamp(min=SMALLEST_STD / 2)).to(values.dtype)
