"""Tiny policies of every family, of random weights, on the family's real classes: what the conformance suite runs on.

A new family adds a function here and its name to `FAMILIES`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma3TextConfig,
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from limner.models.families.janus.policy import JanusPolicy
from limner.models.families.shared_vocabulary import SharedVocabularyPolicy
from limner.models.pictures.contract import VQImageTokenizer
from limner.models.policy import UnifiedPolicy
from limner.models.tokens.processing import Processor
from limner.models.tokens.text_tokenizer import train_text_tokenizer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .tiny_vila_u import tiny_vila_u
from .tiny_vq import ids_of, lean, published_tokenizer, tiny_chameleon, tiny_emu3, tiny_liquid

WIDTH = 32
CODES = 64
WINDOW = 24
"""Tokens that a layer with a window sees; less than any document of the suite has."""
SENTENCES = (
    "A red circle is on the left.",
    "Fold the paper in half.\n\n",
    "Describe this picture: ",
    "Then wait, and stir.",
)
TEXT_SIZE = 300


def vq_tokenizer() -> VQImageTokenizer:
    """16 of 64 codes a picture of 32 pixels, all of them codes of pictures of the embedded world."""
    torch.manual_seed(0)
    tokenizer = VQImageTokenizer.create(image_size=32, patch=8, channels=(16,), codes=CODES, code_size=8).eval()
    with torch.no_grad():
        latents = tokenizer.latents(tokenizer.pixels([draw_scene(scene) for scene in SCENES[::4]]))
        latents = torch.unique(latents.movedim(1, -1).reshape(-1, 8), dim=0)
        tokenizer.model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:CODES]])
    return tokenizer


def llama() -> UnifiedPolicy:
    """The embedded model: input and output embedding are one."""
    return _created(LlamaConfig(tie_word_embeddings=True, **_sizes()))


def windowed(kind: str) -> UnifiedPolicy:
    """A model whose layers, or some of them, see `WINDOW` tokens."""
    both = ["sliding_attention", "full_attention"]
    window: dict[str, Any] = {"sliding_window": WINDOW, "num_key_value_heads": 2, **_sizes()}
    configs: dict[str, Callable[[], PreTrainedConfig]] = {
        "mistral": lambda: MistralConfig(**window),
        "phi3": lambda: Phi3Config(tie_word_embeddings=True, **window),
        "gemma3": lambda: Gemma3TextConfig(layer_types=both, head_dim=16, **window),
        "qwen2": lambda: Qwen2Config(layer_types=both, use_sliding_window=True, **window),
    }
    return _created(configs[kind]())


def _created(config: PreTrainedConfig) -> UnifiedPolicy:
    torch.manual_seed(1)
    processor = Processor(train_text_tokenizer(SENTENCES * 4, TEXT_SIZE), vq_tokenizer())
    policy = SharedVocabularyPolicy.create(config, processor)
    lean(policy.model, processor.tokenizer, processor.template.boi)
    policy.model.eval()
    return policy


def _sizes(initializer_range: float = 0.1) -> dict:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": initializer_range,
    }


def published_janus(directory: Path, initializer_range: float = 0.1) -> None:
    """A folder as the authors of Janus publish it, in small: 16 of 64 codes for a picture of 16 pixels."""
    controls = ("<pad>", "<begin>", "<end>", "<|User|>", "<|Assistant|>")
    images = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    backend = published_tokenizer((*controls, *images.values()), (), code_is_special=False).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<begin>", eos_token="<end>", extra_special_tokens=images
    )
    ids = ids_of(tokenizer)
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=len(tokenizer) + 20, **ids, **_sizes(initializer_range)),
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
            "num_image_tokens": 16,
            "projection_dim": WIDTH,
            "initializer_range": initializer_range,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": CODES,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
            "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
            "initializer_range": 0.1,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(2)
    model = JanusForConditionalGeneration(config)
    with torch.no_grad():
        for module in (model.model.generation_embeddings, model.model.generation_head, model.model.generation_aligner):
            for parameter in module.parameters():
                parameter.normal_(std=0.3 * (parameter.dim() - 1))
    boi = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    model.generation_config = GenerationConfig(generation_kwargs={"boi_token_id": boi}, **ids)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    half = [0.5, 0.5, 0.5]
    JanusImageProcessorPil(size={"height": 16, "width": 16}, image_mean=half, image_std=half).save_pretrained(directory)


def janus() -> UnifiedPolicy:
    """Janus as published: its own image tokenizer and chat template."""
    with tempfile.TemporaryDirectory() as directory:
        published_janus(Path(directory))
        policy = JanusPolicy.from_upstream(Path(directory))
    _lean_janus(policy)
    return policy


def janus_reencode() -> UnifiedPolicy:
    """The same, which sees each picture it has drawn once more."""
    policy = janus()
    old = policy.processor
    template = replace(old.template, reencode=True, guidance="empty")
    return JanusPolicy(policy.model, Processor(old.tokenizer, old.image_tokenizer, template, old.vision))


def janus_new() -> UnifiedPolicy:
    """A new Janus around an image tokenizer of another kind, as on the embedded world."""
    torch.manual_seed(3)
    image_tokenizer = vq_tokenizer()
    template, vision = JanusPolicy.new_layout(image_tokenizer.image_size, image_tokenizer.shape)
    tokenizer = train_text_tokenizer(SENTENCES * 4, TEXT_SIZE, template.image)
    config = LlamaConfig(tie_word_embeddings=True, **_sizes())
    policy = JanusPolicy.create(config, Processor(tokenizer, image_tokenizer, template, vision))
    _lean_janus(policy)
    policy.model.eval()
    return policy


def _lean_janus(policy: UnifiedPolicy) -> None:
    tower = policy.model.model
    last = [aligner.hidden_layers[-1] for aligner in (tower.generation_aligner, tower.aligner)]
    with torch.no_grad():
        for layer in last:
            layer.weight.normal_(std=0.3)
            layer.weight[0], layer.bias[0] = 0, -0.5  # what is embedded by another way leans as well
    lean(policy.model, policy.processor.tokenizer, policy.processor.template.boi)


def _strengthened(make: Callable[[], UnifiedPolicy]) -> Callable[[], UnifiedPolicy]:
    """With layers of std 0.02 a hidden state is hardly more than what is embedded, and no check sees the rest."""

    def strengthened() -> UnifiedPolicy:
        policy = make()
        plain = {id(policy.model.get_input_embeddings().weight), id(policy.model.get_output_embeddings().weight)}
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad and parameter.dim() > 1 and id(parameter) not in plain:
                    parameter.mul_(5)
        return policy

    return strengthened


FAMILIES: dict[str, Callable[[], UnifiedPolicy]] = {
    "llama": llama,
    "mistral": partial(windowed, "mistral"),
    "gemma3": partial(windowed, "gemma3"),
    "liquid": _strengthened(tiny_liquid),
    "chameleon": _strengthened(tiny_chameleon),
    "emu3": _strengthened(tiny_emu3),
    "janus": janus,
    "janus_reencode": janus_reencode,
    "janus_new": janus_new,
    "vila_u": tiny_vila_u,
    "vila_u_shared": partial(tiny_vila_u, shared=True),
}
