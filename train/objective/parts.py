"""Several rewards to one advantage: each part normalised in its group first, and then summed (GDPO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["sum-then-normalise", "normalise-then-sum"]


def sum_of_parts(weights: Sequence[float], advantages: Sequence[Tensor], scored: Sequence[Tensor]) -> Tensor:
    """sum_k w_k A_k / sum_k w_k over the parts that score, of any shape; NaN where none does.

    A_k is a part's advantage, normalised in its own group (GDPO, arXiv 2601.05242): a sum of scores is normalised by
    the part that varies most, and answers that differ in the others only get the same advantage. `scored` says where a
    part takes part. GDPO divides the weighted sum by its std over the batch; the weighted mean differs from that by one
    factor a batch, does not grow with the number of parts, and does not blow up a batch in which hardly a group varies.
    """
    weight = torch.tensor(weights, dtype=advantages[0].dtype).view(-1, *[1] * advantages[0].dim())
    present = torch.stack(list(scored)) * weight
    return (torch.stack(list(advantages)).nan_to_num(0.0) * present).sum(0) / present.sum(0)
