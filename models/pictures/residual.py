"""Residual quantisation (Lee et al., arXiv 2203.01941): a vector as the sum of D entries of codebooks.

Each code is the entry nearest to what those before it have left over. Codebooks are [1 or D, codes, W]: one for all
depths, or one for each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def residual_codes(vectors: Tensor, books: Tensor, depth: int) -> Tensor:
    """Codes [n, depth] of vectors [n, W]."""
    rest, codes = vectors, []
    for number in range(depth):
        book = books[number if len(books) > 1 else 0]
        # The nearest entry: |r - b|^2 is |r|^2 - 2 (r b - |b|^2 / 2).
        codes.append((rest @ book.T - book.square().sum(-1) / 2).argmax(-1))
        rest = rest - book[codes[-1]]
    return torch.stack(codes, -1)


def entries(codes: Tensor, books: Tensor) -> Tensor:
    """Entries [..., d, W] of codes [..., d], of the depths from 0 on."""
    if len(books) == 1:
        return books[0][codes]
    first = torch.arange(codes.shape[-1], device=codes.device) * books.shape[1]
    return books.flatten(0, 1)[codes + first]


class Codebooks(nn.Module):
    def __init__(self, books: int, codes: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(books, codes, width))

    def forward(self, codes: Tensor) -> Tensor:
        """Entries [..., d, W] of codes [..., d]."""
        return entries(codes, self.weight)
