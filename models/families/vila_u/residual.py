"""Residual quantisation (Lee et al., arXiv 2203.01941): a vector as the sum of D entries of codebooks.

Each code is the entry nearest to what those before it have left over.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Codebooks(nn.Module):
    """One codebook for all depths, or one for each: [1 or D, codes, W]."""

    def __init__(self, books: int, codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(books, codes, width))

    def of(self, depth: int) -> Tensor:
        """The codebook of a depth, [codes, W]."""
        return self.weight[depth if len(self.weight) > 1 else 0]

    def forward(self, codes: Tensor) -> Tensor:
        """Entries [..., d, W] of codes [..., d], of the depths from 0 on."""
        if len(self.weight) == 1:
            return self.weight[0][codes]
        first = torch.arange(codes.shape[-1], device=codes.device) * self.weight.shape[1]
        return self.weight.flatten(0, 1)[codes + first]

    def quantise(self, vectors: Tensor, depth: int) -> Tensor:
        """Codes [n, depth] of vectors [n, W]."""
        rest, codes = vectors, []
        for number in range(depth):
            book = self.of(number)
            # The nearest entry: |r - b|^2 is |r|^2 - 2 (r b - |b|^2 / 2).
            codes.append((rest @ book.T - book.square().sum(-1) / 2).argmax(-1))
            rest = rest - book[codes[-1]]
        return torch.stack(codes, -1)
