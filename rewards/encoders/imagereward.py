"""ImageReward (arXiv 2304.05977): would people like this picture for this text?

Its release is a pickled state dict of the original BLIP code with a head on top, `ImageReward.pt`. Here its tensors
(`weights_only`) go into transformers' own BLIP encoders: names differ and arithmetic does not, which a test holds
against the original's formulas. Text and picture meet in the text encoder's cross-attention; the head is a chain of
linear layers on its first token, without activations between them, as released.

    score = sigmoid((head - MEAN) / STD)

The release standardises with these two numbers; the sigmoid that brings it to 0..1 is ours: 0.5 is the average picture.
"""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoTokenizer, BlipTextConfig, BlipVisionConfig
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from .pretrained import Encoder, batches, find_file, load_pretrained

logger = logging.getLogger(__name__)

MODEL = "THUDM/ImageReward"
TOKENIZER = "google-bert/bert-base-uncased"
"""For a repository; a folder brings its own beside `ImageReward.pt` and `med_config.json`."""
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
"""Of a text, its end is cut."""
HEAD_WIDTH = 64
"""Of an attention head of the picture encoder, in every size of BLIP."""
UNUSED = re.compile(r"blip\.(?:(?:text|vision)_proj\.|text_encoder\.embeddings\.position_ids)")
"""Tensors of the release that scoring does not touch."""
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    r"patch_embed\.proj\.": "embeddings.patch_embedding.",
    r"blocks\.(\d+)\.norm(\d)\.": r"encoder.layers.\1.layer_norm\2.",
    r"blocks\.(\d+)\.attn\.qkv\.": r"encoder.layers.\1.self_attn.qkv.",
    r"blocks\.(\d+)\.attn\.proj\.": r"encoder.layers.\1.self_attn.projection.",
    r"blocks\.(\d+)\.mlp\.": r"encoder.layers.\1.mlp.",
    r"norm\.": "post_layernorm.",
}
"""Of the original picture encoder, and transformers'; those of the text encoder are the same."""


class ImageRewardModel(nn.Module):
    def __init__(self, vision: BlipVisionModel, text: BlipTextModel, head: nn.Sequential):
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Standardised scores [B], fp32. pixels [B, 3, S, S], ids and mask [B, T]."""
        image_BNH = self.vision(pixels).last_hidden_state
        text_BTH = self.text(ids, attention_mask=mask, encoder_hidden_states=image_BNH).last_hidden_state
        return (self.head(text_BTH[:, 0]).squeeze(-1).float() - MEAN) / STD


class ImageRewardScorer:
    """Scores pairs, 0 to 1."""

    def __init__(self, model: ImageRewardModel, tokenizer: Any, batch_size: int = 32):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        side = int(model.vision.config.image_size)  # type: ignore[arg-type]
        self.pixels = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    @classmethod
    def load(cls, name: str, encoder: Encoder, model: str = "") -> ImageRewardScorer:
        """Raises InputError for a folder or repository that does not hold the release."""
        place = model or MODEL
        weights, settings = find_file(place, "ImageReward.pt"), find_file(place, "med_config.json")
        with reading(weights):
            scorer = build_model(torch.load(weights, map_location="cpu", weights_only=True), read_settings(settings))
        tokenizer = load_pretrained(AutoTokenizer, place if Path(place).is_dir() else TOKENIZER)
        return cls(encoder.config.place(scorer), tokenizer, encoder.batch_size)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        scores: list[float] = []
        weight = next(self.model.parameters())
        for pairs in batches(list(zip(images, texts, strict=True)), self.batch_size):
            pixels = self.pixels(images=[image for image, _ in pairs], return_tensors="pt")["pixel_values"]
            text = self.tokenizer(
                [text for _, text in pairs],
                padding="max_length",
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            ).to(weight.device)
            scores_B = self.model(pixels.to(weight.device, weight.dtype), text.input_ids, text.attention_mask)
            scores += scores_B.sigmoid().tolist()
        return scores


def read_settings(path: Path) -> dict[str, Any]:
    with reading(path):
        return parse_json(path.read_text(encoding="utf-8"))


def build_model(released: Mapping[str, Tensor], settings: Mapping[str, Any]) -> ImageRewardModel:
    """The model of a released state dict; sizes are read off the tensors, the rest from `med_config.json`.

    Raises InputError or RuntimeError where the encoders and the head do not get exactly the tensors they have.
    """
    parts: dict[str, dict[str, Tensor]] = {"blip.visual_encoder.": {}, "blip.text_encoder.": {}, "mlp.layers.": {}}
    for name, tensor in released.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix and not UNUSED.match(name):
            parts[prefix][name.removeprefix(prefix)] = tensor
        elif not UNUSED.match(name):
            logger.warning("ImageReward.pt: %s is not used", name)
    if empty := [prefix for prefix, tensors in parts.items() if not tensors]:
        raise InputError(f"ImageReward.pt: holds no tensor {empty[0]}*; see the file")
    vision, text, head = parts.values()
    model = ImageRewardModel(_vision(vision), _text(text, settings, _width(vision)), _head(head))
    model.vision.load_state_dict({_renamed(name): tensor for name, tensor in vision.items()})
    model.text.load_state_dict(text)
    model.head.load_state_dict(head)
    return model


def _width(tensors: Mapping[str, Tensor]) -> int:
    return tensors["cls_token"].shape[-1]


def _vision(tensors: Mapping[str, Tensor]) -> BlipVisionModel:
    patch, positions = tensors["patch_embed.proj.weight"].shape[-1], tensors["pos_embed"].shape[1]
    config = BlipVisionConfig(
        hidden_size=_width(tensors),
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        num_attention_heads=_width(tensors) // HEAD_WIDTH,
        image_size=patch * round((positions - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return BlipVisionModel(config)


def _text(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], vision_width: int) -> BlipTextModel:
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=vision_width,
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=settings["num_attention_heads"],
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        hidden_act=settings["hidden_act"],
        layer_norm_eps=settings["layer_norm_eps"],
        pad_token_id=settings["pad_token_id"],
        is_decoder=True,  # which is how transformers asks for cross-attention; the mask stays bidirectional
    )
    return BlipTextModel(config, add_pooling_layer=False)


def _head(tensors: Mapping[str, Tensor]) -> nn.Sequential:
    """Its layers keep their numbers: those between are dropouts."""
    weights = {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if name.endswith(".weight")}
    numbers = sorted(weights, key=int)
    return nn.Sequential(OrderedDict((n, nn.Linear(weights[n].shape[1], weights[n].shape[0])) for n in numbers))


def _renamed(name: str) -> str:
    for theirs, ours in VISION_NAMES.items():
        renamed, count = re.subn(f"^{theirs}", ours, name)
        if count:
            return renamed
    return name
