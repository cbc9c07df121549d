"""Family "two heads": stock `JanusForConditionalGeneration` (Janus 1.3B, Janus-Pro 1B and 7B).

Image codes have an embedding and a head of their own; given pictures are seen through SigLIP, whose features stand at
placeholders. transformers' class does one modality a call and trains the text head only (its tests say what else); here
its modules are put together for documents of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize
from transformers import (
    AutoImageProcessor,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from ....configs.errors import InputError, reading
from ....configs.registry import register
from ...attention import decoded
from ...pictures.vision import Vision
from ...policy import UnifiedPolicy
from ...tokens.processing import Processor
from ...tokens.template import Template
from ..upstream import read_model, read_tokenizer
from .pictures import JanusImageTokenizer

TEMPLATE = Template(
    boi="<begin_of_image>",
    eoi="<end_of_image>",
    image="<image_placeholder>",
    start="<|User|>: ",
    answer="\n\n<|Assistant|>:",
    guidance="padded",
)
"""Janus' chat form without a system prompt (transformers, convert_janus_weights_to_hf.py); the other control tokens are
those that the tokenizer names."""


@register("family", "janus")
class JanusPolicy(UnifiedPolicy):
    """Janus and Janus-Pro: a head for text, one for picture codes, and SigLIP for given pictures."""

    family = "janus"
    model_class = JanusForConditionalGeneration
    own_image_head = True
    never_trained = ("model.vqmodel",)

    def __init__(self, model: PreTrainedModel, processor: Processor):
        super().__init__(model, processor)
        self.tower: Any = model.model
        self._code_table: Tensor | None = None
        """The embeddings of all codes, while they stay as they are."""
        embedded, rows = self.tower.generation_embeddings.num_embeddings, model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]
        if embedded != self.vocabulary.image_codes:
            raise InputError(
                f"the model embeds {embedded} image codes, its image tokenizer has {self.vocabulary.image_codes}"
            )
        if rows < self.vocabulary.text_size:
            raise InputError(f"the language model has {rows} ids, its tokenizer {self.vocabulary.text_size}")
        if not self.vocabulary.features:
            raise InputError(f"family {self.family!r}: no preprocessing of given pictures (preprocessor_config.json)")

    @classmethod
    def from_upstream(cls, directory: Path) -> JanusPolicy:
        """A folder of transformers' Janus, such as deepseek-community/Janus-Pro-1B.

        Raises InputError where a part is missing.
        """
        model: Any = read_model(cls.model_class, directory)
        with reading(directory):
            vision = cls.vision(directory, model.config)
        tokenizer = read_tokenizer(directory, (TEMPLATE.boi, TEMPLATE.eoi, TEMPLATE.image, "<|User|>", "<|Assistant|>"))
        names: dict[str, Any] = {name: getattr(tokenizer, f"{name}_token") for name in ("pad", "bos", "eos")}
        template = replace(TEMPLATE, start=f"{names['bos']}{TEMPLATE.start}", **names)
        # Its own weights, in full precision: the model's are moved, cast and sharded with it.
        image_tokenizer = JanusImageTokenizer(deepcopy(model.model.vqmodel).float())
        return cls(model, Processor(tokenizer, image_tokenizer, template, vision))

    @classmethod
    def vision(cls, directory: Path, config: Any) -> Vision:
        # By PIL wherever it runs: the other backend, where it is installed, rounds differently.
        processor = AutoImageProcessor.from_pretrained(directory, backend="pil")
        return Vision(processor, config.vision_config.num_image_tokens)

    @classmethod
    def new_layout(cls, image_size: int, grid: tuple[int, int]) -> tuple[Template, Vision]:
        half = [0.5, 0.5, 0.5]
        size = {"height": image_size, "width": image_size}
        processor = JanusImageProcessorPil(size=size, image_mean=half, image_std=half)
        return Template(image="<image>", guidance="padded"), Vision(processor, grid[0] * grid[1])

    @classmethod
    def create(cls, config: Any, processor: Processor) -> JanusPolicy:
        """A picture encoder of two layers, as wide as the language model, with a feature for each patch of its grid.

        The class wants an image tokenizer of its own inside; it gets the smallest there is, and it is never used.
        """
        control, codebook = processor.vocabulary.controls, processor.image_tokenizer.codebook()
        assert processor.vision is not None and control.image is not None
        config.vocab_size = processor.vocabulary.text_size
        config.pad_token_id, config.bos_token_id, config.eos_token_id = control.pad, control.bos, control.eos
        side, width = processor.vision.processor.size["height"], config.hidden_size
        shared = {"projection_dim": width, "initializer_range": config.initializer_range}
        vision_config = JanusVisionConfig(
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=config.num_attention_heads,
            image_size=side,
            patch_size=side // isqrt(processor.vision.features),
            num_image_tokens=processor.vision.features,
            **shared,
        )
        vq_config = JanusVQVAEConfig(
            embed_dim=codebook.shape[1],
            num_embeddings=len(codebook),
            image_token_embed_dim=width,
            latent_channels=1,
            base_channels=32,
            channel_multiplier=[1],
            num_res_blocks=1,
            **shared,
        )
        model = JanusForConditionalGeneration(
            JanusConfig(
                text_config=config,
                vision_config=vision_config,
                vq_config=vq_config,
                image_token_id=control.image,
                tie_word_embeddings=config.tie_word_embeddings,
            )
        )
        names = {f"{name}_token_id": getattr(control, name) for name in ("pad", "bos", "eos")}
        # What transformers' own image mode asks for.
        model.generation_config = GenerationConfig(generation_kwargs={"boi_token_id": control.boi}, **names)
        with torch.no_grad():  # similar codes start out similar
            model.model.generation_embeddings.weight.copy_(normalize(codebook - codebook.mean(0), dim=-1))
        return cls(model, processor)

    def hidden(
        self,
        ids_BT: Tensor,
        positions_BT: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        features: Tensor | None = None,
    ) -> Tensor:
        return decoded(
            self.tower.language_model, positions_BT, mask, cache, inputs_embeds=self._embedded(ids_BT, features)
        )

    @contextmanager
    def standing_still(self, images: bool) -> Iterator[None]:
        """A code is embedded by an MLP, so a sampler looks it up in a table of all."""
        if images:
            codes = torch.arange(self.vocabulary.image_codes, device=self.model.device)
            self._code_table = self.model.prepare_embeddings_for_image_generation(codes)  # type: ignore[operator]
        try:
            yield
        finally:
            self._code_table = None

    def _embedded_codes(self, codes_BT: Tensor) -> Tensor:
        if self._code_table is None or torch.is_grad_enabled():
            return self.model.prepare_embeddings_for_image_generation(codes_BT)  # type: ignore[operator]
        return embedding(codes_BT, self._code_table)

    def _embedded(self, ids_BT: Tensor, features: Tensor | None) -> Tensor:
        """Every id by both embeddings: so both are in the graph of any batch, and no step waits for a count."""
        size = self.vocabulary.text_size
        code_BT = ids_BT >= size
        text = self.tower.get_input_embeddings()(ids_BT.masked_fill(code_BT, self.vocabulary.controls.pad))
        codes = self._embedded_codes((ids_BT - size).clamp(min=0))
        embedded = torch.where(code_BT[..., None], codes.to(text.dtype), text)
        if features is None:
            return embedded
        seen_BT = ids_BT == self.vocabulary.controls.image
        return embedded.masked_scatter(seen_BT[..., None], features.to(text.dtype))

    def image_features(self, pixels: Tensor) -> Tensor:
        tower = self.tower
        if len(pixels):
            return tower.aligner(tower.vision_model(pixels.to(self.model.dtype)).last_hidden_state)
        # A blank picture that nobody sees keeps the encoder in the graph: every rank must have a gradient of it.
        side = self.model.config.vision_config.image_size
        return self.image_features(torch.zeros(1, 3, side, side, device=self.model.device))[:0]

    def text_logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)[..., : self.vocabulary.text_size]  # type: ignore[operator]

    def image_logits(self, hidden: Tensor) -> Tensor:
        return self.tower.generation_head(hidden)

    def parts(self) -> dict[str, tuple[Tensor, slice]]:
        text, every = slice(self.vocabulary.text_size), slice(None)
        embedding: Any = self.model.get_input_embeddings()
        return {
            "text embedding": (embedding.weight, text),
            "image embedding": (self.tower.generation_embeddings.weight, every),
            "text head": (self.model.lm_head.weight, text),  # type: ignore[union-attr]
            "image head": (self.tower.generation_head.vision_head.weight, every),
        }
