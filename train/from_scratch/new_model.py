"""A new model of random weights, its text tokenizer and its image tokenizer: where no checkpoint is given."""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from PIL import Image
from transformers import LlamaConfig

from ...configs.bounds import Layers, OneOrMore, Seed, Weight, Width
from ...configs.errors import InputError
from ...models.families.shared_vocabulary import SharedVocabularyPolicy
from ...models.policy import UnifiedPolicy, family
from ...models.tokens.processing import Processor
from ...models.tokens.text_tokenizer import train_text_tokenizer
from .image_tokenizer import ImageTokenizerConfig, train_image_tokenizer


@dataclass
class NewModelConfig:
    """A Llama, and what its family puts around it."""

    family: str = SharedVocabularyPolicy.family
    text_vocabulary: OneOrMore = 3072
    """Tokens of the byte-level BPE, controls included."""
    hidden_size: Width = 128
    intermediate_size: Width = 384
    layers: Layers = 4
    heads: OneOrMore = 4
    max_positions: OneOrMore = 2048
    initializer_range: Weight = 0.06
    """Std of the weights at the start. Transformers' 0.02 suits wide models; at width 128 it costs twice the steps."""
    attend_alike: Weight = 0.0
    """Identity added to query and key weights at the start, so that copying is learnt sooner; see `attend_alike`."""
    seed: Seed = 0
    image_tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)


def general_english() -> str:
    """The English that the text tokenizer learns from beside the data."""
    return (importlib.resources.files(__package__ or "") / "english.txt").read_text("utf-8")


def new_processor(
    texts: Iterable[str], images: Sequence[Image.Image], config: NewModelConfig
) -> tuple[Processor, dict]:
    """Both tokenizers, trained; and the image tokenizer's figures.

    Raises InputError for several codes a position in a family that draws one.
    """
    chosen, wanted = family(config.family), config.image_tokenizer
    depth = chosen.new_depth if wanted.depth is None else wanted.depth
    if depth > 1 and chosen.new_depth == 1:
        raise InputError(f"image_tokenizer.depth: {depth}, and family {config.family!r} draws one code a position")
    image_tokenizer, figures = train_image_tokenizer(images, replace(wanted, depth=depth))
    template, vision = chosen.new_layout(image_tokenizer.image_size, image_tokenizer.shape)
    tokenizer = train_text_tokenizer([general_english(), *texts], config.text_vocabulary, template.image)
    return Processor(tokenizer, image_tokenizer, template, vision), figures


def new_policy(processor: Processor, config: NewModelConfig) -> UnifiedPolicy:
    torch.manual_seed(config.seed)
    model_config = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        initializer_range=config.initializer_range,
        tie_word_embeddings=True,
    )
    policy = family(config.family).create(model_config, processor)
    attend_alike(policy.model, config.attend_alike)
    return policy


@torch.no_grad()
def attend_alike(model: torch.nn.Module, strength: float) -> None:
    """Adds `strength` times the identity to query and key weights: tokens begin by attending to tokens like them.

    Small models learn to copy and to compare words sooner so. The idea is that of mimetic initialisation (Trockman and
    Kolter 2023, arXiv 2305.09828), which draws query and key weights so that their product has a diagonal.
    """
    for name, module in model.named_modules():
        if name.endswith((".q_proj", ".k_proj")):
            weight = module.get_parameter("weight")
            weight.add_(strength * torch.eye(*weight.shape, device=weight.device, dtype=weight.dtype))
