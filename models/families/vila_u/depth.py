"""The depth transformer: the D codes of a position, one after the other, from one hidden state.

What it reads is the hidden state, then after each code the sum of the entries so far (mit-han-lab/vila-u,
modeling_rqtransformer.py; the names are those of its weights). With so few tokens a cache would save nothing: what a
code costs is the weights that are read for it.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class Attention(nn.Module):
    """Causal, over the codes of a position."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.key, self.query, self.value, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        # By hand: so many short sequences are more than the fused kernels take.
        scores = query @ key.transpose(-1, -2) / key.shape[-1] ** 0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        seen = scores.masked_fill(later, float("-inf")).softmax(-1) @ value
        return self.proj(seen.transpose(1, 2).flatten(-2))


class Block(GradientCheckpointingLayer):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln1(hidden))
        return hidden + self.mlp(self.ln2(hidden))


class DepthTransformer(nn.Module):
    def __init__(self, hidden: int, entry: int, width: int, layers: int, heads: int, depth: int, codes: int):
        """Of hidden states and codebook entries so wide; `width`, `layers` and `heads` are its own."""
        super().__init__()
        self.in_mlp_1 = nn.Linear(entry, width)
        self.in_mlp_2 = nn.Linear(hidden, width)
        self.pos_emb_d = nn.Parameter(torch.zeros(1, depth, width).normal_(std=0.02))
        self.head_transformer = nn.Module()
        self.head_transformer.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        norm, linear = nn.LayerNorm(width), nn.Linear(width, codes)
        self.classifier_mlp = nn.Sequential(OrderedDict(layer_norm=norm, linear=linear))

    def forward(self, hidden: Tensor, entries: Tensor) -> Tensor:
        """What the first d + 1 codes are scored from, [n, d + 1, E], of hidden states [n, H] and the entries of the
        first d codes [n, d, W]."""
        tokens = torch.cat([self.in_mlp_2(hidden)[:, None], self.in_mlp_1(entries.cumsum(1))], 1)
        tokens = tokens + self.pos_emb_d[:, : tokens.shape[1]]
        for block in self.head_transformer.blocks:  # type: ignore[union-attr]
            tokens = block(tokens)
        return self.classifier_mlp.layer_norm(tokens)
