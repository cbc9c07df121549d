"""What is learned from answers that the length limit cut: DAPO's formula, and which tokens are left."""

import torch
from torch import tensor

from limner.train.objective.cut import learned_tokens, overlong_punishment


def test_soft_overlong_punishment_is_dapos():
    # DAPO, section 3.4: 16384 tokens and a cache of 4096; 0, then a line, -1 at the maximum.
    lengths = tensor([0, 16384, 18432, 20480])
    torch.testing.assert_close(overlong_punishment(lengths, 20480, 0.8), tensor([0.0, 0.0, -0.5, -1.0]))


def test_what_is_left_to_train_on():
    chosen = tensor([[False, True, True, True, True, True]]).repeat(3, 1)
    segment = tensor([[-1, 0, 1, 1, 2, 2], [-1, 0, 0, 1, 1, 2], [-1, 0, 0, 0, 0, 0]])
    segments, cut = tensor([2, 2, 1]), tensor([True, False, True])  # a picture cut; <eos>; a text cut

    def left(mask_answers, mask_pictures):
        return learned_tokens(chosen, segment, segments, cut, mask_answers, mask_pictures).sum(1).tolist()

    assert left(False, False) == [5, 5, 5]
    assert left(False, True) == [3, 5, 5]
    assert left(True, False) == left(True, True) == [0, 5, 0]
    assert torch.equal(chosen.sum(1), tensor([5, 5, 5]))
