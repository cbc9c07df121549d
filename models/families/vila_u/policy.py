"""Family "residual codes": VILA-U 7B (arXiv 2409.04429), a Llama that draws D codes for each position of a picture.

A position is embedded as the projected sum of its codebook entries, and so is a given picture: it is its codes, and the
image tokenizer sees it once. The codes of a position come from its hidden state by a depth transformer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from ....configs.errors import InputError
from ....configs.registry import register
from ...attention import decoded
from ...policy import UnifiedPolicy
from ...tokens.processing import Processor
from . import released
from .model import VilaUForCausalLM


@register("family", "vila_u")
class VilaUPolicy(UnifiedPolicy):
    """VILA-U: residual codes of a depth transformer."""

    family = "vila_u"
    model_class = VilaUForCausalLM
    upstream_types = ("vila_u_llama",)
    own_image_head = True
    never_trained = ("codebooks",)
    new_depth = 2

    def __init__(self, model: PreTrainedModel, processor: Processor):
        super().__init__(model, processor)
        self.network: Any = model
        books, codes, _ = self.network.codebooks.weight.shape
        depth = self.network.depth_transformer.pos_emb_d.shape[1]
        own = (self.vocabulary.depth, self.vocabulary.image_codes)
        if (depth, codes) != own or books not in (1, depth):
            raise InputError(
                f"the model has {books} codebooks of {codes} codes and draws {depth} of a position; "
                f"its image tokenizer has {own[0]} of {own[1]}"
            )
        if len(self.network.lm_head.weight) < self.vocabulary.text_size:
            rows = len(self.network.lm_head.weight)
            raise InputError(f"the language model has {rows} ids, its tokenizer {self.vocabulary.text_size}")

    @classmethod
    def create(cls, config: Any, processor: Processor) -> VilaUPolicy:
        """A depth transformer of two layers, as wide as the language model, and the image tokenizer's codebooks."""
        vocabulary, books = processor.vocabulary, processor.image_tokenizer.codebook()
        if vocabulary.depth == 1:
            raise InputError(f"family {cls.family!r}: its pictures have several codes a position, these have one")
        control = vocabulary.controls
        config.vocab_size = vocabulary.text_size
        config.pad_token_id, config.bos_token_id, config.eos_token_id = control.pad, control.bos, control.eos
        config.vila_u = {
            "books": len(books),
            "codes": vocabulary.image_codes,
            "entry": books.shape[2],
            "depth": vocabulary.depth,
            "width": config.hidden_size,
            "layers": 2,
            "heads": config.num_attention_heads,
        }
        model = VilaUForCausalLM(config)
        with torch.no_grad():
            model.codebooks.weight.copy_(books / books[0].std().clamp(min=1e-6))
        return cls(model, processor)

    @classmethod
    def image_choices(cls, config: Any) -> int:
        return config.vila_u["codes"] * config.vila_u["depth"]

    @classmethod
    def from_upstream(cls, directory: Path) -> VilaUPolicy:
        """A folder as mit-han-lab/vila-u-7b-256: `llm`, `mm_projector` and `vision_tower` in it.

        Raises InputError where a part is missing, or is not of the others.
        """
        return cls(*released.read(directory))

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        features: Tensor | None = None,
    ) -> Tensor:
        return decoded(self.network.model, positions_BT, mask, cache, inputs_embeds=self._embedded(ids_BT))

    def _embedded(self, ids_BT: Tensor) -> Tensor:
        """Every id by both ways: so both are in the graph of any batch, and no step waits for a count."""
        size = self.vocabulary.text_size
        code_BT = ids_BT >= size
        text = self.network.model.embed_tokens(ids_BT.masked_fill(code_BT, self.vocabulary.controls.pad))
        entries = self.network.codebooks(self.vocabulary.codes_of(ids_BT.clamp(min=size)))
        return torch.where(code_BT[..., None], self.network.projector(entries.sum(-2)).to(text.dtype), text)

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.network.lm_head(hidden)[..., : self.vocabulary.text_size]

    def depth_states(self, hidden: Tensor, before: Tensor) -> Tensor:
        if not len(hidden):  # one that nobody sees: every rank must have a gradient
            return self.depth_states(hidden.new_zeros(1, *hidden.shape[1:]), before.new_zeros(1, before.shape[1]))[:0]
        return self.network.depth_transformer(hidden, self.network.codebooks(before))

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.network.depth_transformer.classifier_mlp.linear(hidden)

    def parts(self) -> dict[str, tuple[Tensor, slice]]:
        text, every = slice(self.vocabulary.text_size), slice(None)
        return {
            "text embedding": (self.network.model.embed_tokens.weight, text),
            "image embedding": (self.network.projector[0].weight, every),
            "text head": (self.network.lm_head.weight, text),
            "image head": (self.network.depth_transformer.classifier_mlp.linear.weight, every),
        }
