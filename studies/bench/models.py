"""The models of `limner bench sampler`: untrained, on their families' real classes. A new one is a function and a row.

The tiny ones have the sizes of the demo's new model: 4 layers of width 128, 3,072 text ids, 256 codes. All have
16 codes an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    Emu3Config,
    Emu3ForConditionalGeneration,
    LlamaConfig,
)

from ...configs.bounds import OneOrMore
from ...models.families.chameleon import ChameleonPolicy
from ...models.families.emu3 import Emu3Policy
from ...models.families.janus.policy import JanusPolicy
from ...models.families.shared_vocabulary import SharedVocabularyPolicy
from ...models.families.vila_u.policy import VilaUPolicy
from ...models.pictures.contract import VQImageTokenizer
from ...models.policy import UnifiedPolicy
from ...models.tokens.processing import Processor
from ...models.tokens.template import Template
from ...models.tokens.text_tokenizer import train_text_tokenizer
from ...train.from_scratch.new_model import NewModelConfig, general_english, new_policy
from ...worlds.picture_stories.scenes import outlines, story
from .baselines import Baseline, DepthBaseline, OneHeadBaseline, TwoHeadBaseline

SIZES = NewModelConfig()


@dataclass(frozen=True, slots=True)
class BenchModel:
    make: Callable[[], UnifiedPolicy]
    baseline: Callable[[UnifiedPolicy], Baseline] = OneHeadBaseline
    turns: OneOrMore = 5
    """Timed runs of each contender; fewer where they are long, and so less noisy."""


def tiny_llama() -> UnifiedPolicy:
    """The demo's new model."""
    return new_policy(Processor(_text_tokenizer(), _image_tokenizer()), SIZES)


def tiny_janus() -> UnifiedPolicy:
    image_tokenizer = _image_tokenizer()
    template, vision = JanusPolicy.new_layout(image_tokenizer.image_size, image_tokenizer.shape)
    processor = Processor(_text_tokenizer(template.image), image_tokenizer, template, vision)
    return new_policy(processor, replace(SIZES, family=JanusPolicy.family))


def tiny_chameleon() -> UnifiedPolicy:
    """Its codes are among the ids of its tokenizer."""
    tokenizer, image_tokenizer = _text_tokenizer(), _image_tokenizer()
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    tokenizer.add_tokens([f"IMGIMG{str(code).translate(letters)}Z" for code in range(image_tokenizer.codes)])
    config = ChameleonConfig(
        **_text_config(tokenizer),
        vocabulary_map=tokenizer.get_vocab(),
        vq_config={"num_embeddings": image_tokenizer.codes, "base_channels": 32, "channel_multiplier": [1]},
    )
    processor = Processor(tokenizer, image_tokenizer, code_ids=ChameleonPolicy.code_ids(config))
    return ChameleonPolicy(ChameleonForConditionalGeneration(config), processor)


def tiny_emu3() -> UnifiedPolicy:
    """Its codes are among the ids of its tokenizer; images have a header, row ends and a footer."""
    tokenizer, image_tokenizer = _text_tokenizer(), _image_tokenizer()
    header, row_end, footer = controls = "<|image token|>", "<|extra_200|>", "<|extra_201|>"
    tokenizer.add_tokens([*controls, *(f"<|visual token {code:06d}|>" for code in range(image_tokenizer.codes))])
    rows, columns = image_tokenizer.shape
    template = Template(header=f"{rows}*{columns}{header}", row_end=row_end, footer=footer)
    vq_config = {"codebook_size": image_tokenizer.codes, "base_channels": 32, "channel_multiplier": [1, 1]}
    config = Emu3Config(text_config=_text_config(tokenizer), vq_config=vq_config, vocabulary_map=tokenizer.get_vocab())
    processor = Processor(tokenizer, image_tokenizer, template, code_ids=Emu3Policy.code_ids(config))
    return Emu3Policy(Emu3ForConditionalGeneration(config), processor)


def tiny_vila_u() -> UnifiedPolicy:
    """Two residual codes a position; stock `generate` cannot draw them."""
    processor = Processor(_text_tokenizer(), _image_tokenizer(VilaUPolicy.new_depth))
    return new_policy(processor, replace(SIZES, family=VilaUPolicy.family))


def llama_50m() -> UnifiedPolicy:
    """8 layers of width 512; half of 51 million parameters embed and score 16,384 text ids and 8,192 codes."""
    torch.manual_seed(SIZES.seed)
    image_tokenizer = VQImageTokenizer.create(image_size=32, patch=8, channels=(32,), codes=8192, code_size=8)
    processor = Processor(_text_tokenizer(), image_tokenizer)
    # Padded with ids that spell nothing, as the vocabularies of real models are.
    processor.vocabulary = replace(processor.vocabulary, text_size=16_384)
    config = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8)
    return SharedVocabularyPolicy.create(config, processor)


MODELS = {
    "tiny_llama": BenchModel(tiny_llama),
    "tiny_chameleon": BenchModel(tiny_chameleon),
    "tiny_emu3": BenchModel(tiny_emu3),
    "tiny_janus": BenchModel(tiny_janus, TwoHeadBaseline),
    "tiny_vila_u": BenchModel(tiny_vila_u, DepthBaseline),
    "llama_50m": BenchModel(llama_50m, turns=2),
}


def _text_tokenizer(placeholder: str = "") -> Any:
    texts = [general_english(), *(story(outline).text for outline in outlines(SIZES.seed, 300))]
    return train_text_tokenizer(texts, SIZES.text_vocabulary, placeholder)


def _image_tokenizer(depth: int = 1) -> VQImageTokenizer:
    """Untrained: the sampler never calls it."""
    sizes = SIZES.image_tokenizer
    torch.manual_seed(sizes.seed)
    return VQImageTokenizer.create(
        sizes.image_size, sizes.patch, sizes.channels, sizes.codes, sizes.code_size, sizes.tiled, depth
    )


def _text_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": SIZES.hidden_size,
        "intermediate_size": SIZES.intermediate_size,
        "num_hidden_layers": SIZES.layers,
        "num_attention_heads": SIZES.heads,
        "num_key_value_heads": SIZES.heads,
        "max_position_embeddings": SIZES.max_positions,
        "initializer_range": SIZES.initializer_range,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
    }
