"""Folders of tiny random models of the real classes, as `from_pretrained` finds them: no download, milliseconds."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

SIDE = 16
WORDS = ["a", "at", "of", "on", "the", "big", "small", "red", "blue", "circle", "square", "top", "bottom", "left"]
WORDS += ["right", "picture", "cat", "mat", "sat"]
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CROP = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def spread(model):
    """Random weights apart enough that different inputs have different outputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def clip(folder: Path) -> str:
    torch.manual_seed(0)
    letters = sorted({letter for word in WORDS for letter in word} | set(".,"))
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])
    text = {**TOWER, "vocab_size": len(vocabulary), "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**TOWER, "image_size": SIDE, "patch_size": 8}
    spread(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))).save_pretrained(folder)
    CLIPProcessor(CLIPImageProcessorPil(**CROP), tokenizer).save_pretrained(folder)
    return str(folder)


def siglip(folder: Path) -> str:
    torch.manual_seed(0)
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", *sorted({letter for word in WORDS for letter in word}), "\u2581"]
    tokenizer = Siglip2Tokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, merges=[])
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 16}
    vision = {**TOWER, "image_size": SIDE, "patch_size": 8}
    spread(SiglipModel(SiglipConfig(text_config=text, vision_config=vision))).save_pretrained(folder)
    pixels = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    SiglipProcessor(pixels, tokenizer).save_pretrained(folder)
    return str(folder)


def dino(folder: Path) -> str:
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8)
    spread(Dinov2Model(config)).save_pretrained(folder)
    BitImageProcessorPil(**CROP).save_pretrained(folder)
    return str(folder)


def bert_tokenizer() -> BertTokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]
    return BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)})


def bert(folder: Path) -> str:
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    config = BertConfig(**TOWER, vocab_size=len(tokenizer), max_position_embeddings=40)
    spread(BertModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def image_reward_weights() -> dict[str, torch.Tensor]:
    """Random tensors under the names and in the layout of the release, a 64-wide picture and a 16-wide text encoder."""
    torch.manual_seed(0)
    vision, text, inner, vocabulary = 64, 16, 32, len(bert_tokenizer())
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, vision),
        "blip.visual_encoder.pos_embed": (1, 5, vision),
        "blip.visual_encoder.patch_embed.proj.weight": (vision, 3, 8, 8),
        "blip.visual_encoder.patch_embed.proj.bias": (vision,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (vocabulary, text),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, text),
        "blip.text_proj.weight": (4, text),
        "blip.vision_proj.weight": (4, vision),
    }

    def linear(name, given, made):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (made, given), (made,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    for block in range(2):
        place = f"blip.visual_encoder.blocks.{block}"
        norm(f"{place}.norm1", vision), norm(f"{place}.norm2", vision)
        linear(f"{place}.attn.qkv", vision, 3 * vision), linear(f"{place}.attn.proj", vision, vision)
        linear(f"{place}.mlp.fc1", vision, inner), linear(f"{place}.mlp.fc2", inner, vision)
    norm("blip.visual_encoder.norm", vision), norm("blip.text_encoder.embeddings.LayerNorm", text)
    for layer in range(2):
        place = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, seen in (("attention", text), ("crossattention", vision)):
            linear(f"{place}.{attention}.self.query", text, text)
            linear(f"{place}.{attention}.self.key", seen, text), linear(f"{place}.{attention}.self.value", seen, text)
            linear(f"{place}.{attention}.output.dense", text, text), norm(f"{place}.{attention}.output.LayerNorm", text)
        linear(f"{place}.intermediate.dense", text, inner), linear(f"{place}.output.dense", inner, text)
        norm(f"{place}.output.LayerNorm", text)
    for number, (given, made) in {0: (text, 12), 2: (12, 8), 4: (8, 6), 6: (6, 4), 7: (4, 1)}.items():
        linear(f"mlp.layers.{number}", given, made)
    weights = {name: torch.randn(shape) * 0.4 for name, shape in shapes.items()}
    for name, tensor in weights.items():  # near 1 as norms are, or texts would hardly matter
        tensor += float("norm" in name.lower() and name.endswith(".weight"))
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    return weights


IMAGE_REWARD_SETTINGS = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def image_reward(folder: Path) -> str:
    torch.save(image_reward_weights(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(IMAGE_REWARD_SETTINGS))
    bert_tokenizer().save_pretrained(folder)
    return str(folder)
