"""Parts of a reward normalised by themselves, then summed: GDPO's behaviour, and TRL's formula up to a factor."""

import pytest
import torch
from torch import nan, tensor

from limner.train.objective.advantages import outcome_advantages
from limner.train.objective.parts import sum_of_parts


def by_part(scores_NR, weights, group, floor=0.0):
    each = [outcome_advantages(scores_R, group, floor=floor) for scores_R in scores_NR]
    return sum_of_parts(weights, each, [~scores_R.isnan() for scores_R in scores_NR])


def test_a_part_that_varies_little_is_not_drowned():
    # GDPO, section 3.1: (0, 1) and (0, 2) of two binary rewards have one advantage once they are summed.
    wide, narrow = tensor([0.0, 1.0, 0.0, 1.0]), tensor([0.50, 0.50, 0.51, 0.51])
    whole = outcome_advantages((wide + narrow) / 2, 4)
    parted = by_part([wide, narrow], [1.0, 1.0], 4)
    torch.testing.assert_close(parted, tensor([-1.0, 0.0, 0.0, 1.0]), atol=1e-4, rtol=0)
    assert abs(whole[2] - whole[0]) < 0.03 < 0.9 < parted[2] - parted[0]


def test_it_is_trls_normalize_then_sum_up_to_a_factor():
    scores_NR, weights = torch.rand(3, 24, generator=torch.Generator().manual_seed(0)), [1.0, 0.5, 2.0]
    grouped = scores_NR.view(3, 6, 4)
    normalised = (grouped - grouped.mean(2, keepdim=True)) / (grouped.std(2, keepdim=True) + 1e-4)
    total = (normalised.view(3, 24) * tensor(weights)[:, None]).sum(0)
    theirs, ours = (total - total.mean()) / (total.std() + 1e-4), by_part(scores_NR, weights, 4)
    torch.testing.assert_close(ours / ours.std(), theirs / theirs.std(), atol=5e-3, rtol=0)


def test_only_parts_that_score_count():
    advantages = [tensor([[1.0, nan], [0.5, nan]]), tensor([[-1.0, 0.5], [nan, nan]])]
    total = sum_of_parts([1.0, 3.0], advantages, [~part.isnan() for part in advantages])
    torch.testing.assert_close(total, tensor([[-0.5, 0.5], [0.5, nan]]), equal_nan=True)


def test_one_part_is_itself_bit_by_bit():
    alone = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sum_of_parts([1.0], [alone], [torch.ones(64, dtype=torch.bool)]), alone)


@pytest.mark.parametrize(("floor", "largest"), [(0.0, 1.0), (1e-3, 0.1)])
def test_the_floor_of_a_part_keeps_its_noise_small(floor, largest):
    scores = tensor([0.8, 0.8002, 0.8, 0.8002])
    assert outcome_advantages(scores, 4, floor=floor).abs().max().item() == pytest.approx(largest, abs=1e-3)
