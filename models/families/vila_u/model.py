"""VILA-U as one model: a stock Llama, beside it the codebooks, the projector and the depth transformer.

Its folder opens as a stock `LlamaForCausalLM`, which reads and writes text.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaForCausalLM

from ...pictures.residual import Codebooks
from .depth import DepthTransformer


class VilaUForCausalLM(LlamaForCausalLM):
    """`config.vila_u` says the sizes of what is not Llama's: `books` (1 or D), `codes`, `entry` (numbers of a
    codebook's entry), `depth`, and `width`, `layers` and `heads` of the depth transformer."""

    def __init__(self, config: Any):
        super().__init__(config)
        own = config.vila_u
        self.codebooks = Codebooks(own["books"], own["codes"], own["entry"])
        self.projector = nn.Sequential(
            nn.Linear(own["entry"], config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        sizes = {name: own[name] for name in ("entry", "width", "layers", "heads", "depth", "codes")}
        self.depth_transformer = DepthTransformer(config.hidden_size, **sizes)
        self.post_init()
