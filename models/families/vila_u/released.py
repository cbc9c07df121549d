"""VILA-U's checkpoints as its authors released them: three folders, each with a configuration of its own.

    DIR/llm/            a Llama: config.json (its rope scaled), tokenizer.model, added_tokens.json, safetensors
    DIR/mm_projector/   layers.0.*, layers.2.*
    DIR/vision_tower/   rqvaesiglip.* (SigLIP, codebooks, decoder) and rqtransformer.* (the depth transformer)

Sizes are read from the weights; the heads of attention, which those do not say, from the configurations. The text half
of SigLIP and what its codebooks were trained with are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM, SiglipVisionConfig

from ....configs.errors import InputError, plain_file, reading
from ....configs.json_text import parse_json
from ...tokens.processing import Processor
from ...tokens.template import Template
from ..upstream import read_model
from .model import VilaUForCausalLM
from .pictures import VilaUImageTokenizer, VilaUPictures
from .text import read_tokenizer

FOLDERS = ("llm", "mm_projector", "vision_tower")
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system prompt of Vicuna (lm-sys/FastChat, conversation.py), with which VILA-U was trained."""
SIGLIP_HEADS = {"siglip-base": 12, "siglip-large": 16, "siglip-so400m": 16}
"""Attention heads of the SigLIPs that a configuration names in `pretrained_model`."""
DECODER = "rqvaesiglip.decoder."
EXACT = 1e-6
"""Two codebooks of entries no farther apart are one."""


def read(directory: Path) -> tuple[VilaUForCausalLM, Processor]:
    """Model and processor. Raises InputError that names the folder where a part is missing or of other sizes."""
    for name in FOLDERS:
        if not (directory / name / "config.json").is_file():
            raise InputError(f"{directory}: no {name}/config.json; VILA-U is the folders {', '.join(FOLDERS)}")
    llama: Any = read_model(LlamaForCausalLM, directory / "llm")
    tokenizer = read_tokenizer(directory / "llm", llama.config)
    tower, projector = _weights(directory / "vision_tower"), _weights(directory / "mm_projector")
    with reading(directory / "vision_tower"):
        settings = parse_json((directory / "vision_tower" / "config.json").read_text(encoding="utf-8"))
        pictures = _pictures(settings.get("rqvaesiglip") or {}, tower)
    with reading(directory):
        model = _assembled(llama, pictures, projector, settings.get("rqtransformer") or {}, tower)
    bos = str(tokenizer.bos_token)
    template = Template(
        pad=str(tokenizer.pad_token),
        bos=bos,
        eos=str(tokenizer.eos_token),
        boi="<im_start>",
        eoi="<im_end>",
        start=f"{bos} {SYSTEM} USER: ",
        answer=" ASSISTANT:",
        unconditional=f"{bos} {SYSTEM} USER:ASSISTANT:",
    )
    return model.eval(), Processor(tokenizer, VilaUImageTokenizer(pictures), template)


def _weights(folder: Path) -> dict[str, Tensor]:
    """Of all safetensors of a folder. Raises InputError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no .safetensors; nothing is unpickled")
    weights: dict[str, Tensor] = {}
    for path in files:
        with reading(path):
            weights |= load_file(plain_file(path, None))
    return weights


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    """Of the modules `prefix`0, `prefix`1 and so on."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})


def _books(weights: Mapping[str, Tensor]) -> tuple[Tensor, int]:
    """The codebooks [1 or D, codes, W], and D. Each has a row of padding at its end; equal ones are kept once.

    Raises ValueError where there are none.
    """
    depth = _count(weights, "rqvaesiglip.quantizer.codebooks.")
    if not depth:
        raise ValueError("no codebooks (rqvaesiglip.quantizer.codebooks.0 and so on)")
    names = [f"rqvaesiglip.quantizer.codebooks.{number}" for number in range(depth)]
    books = torch.stack([weights[f"{name}.weight"][:-1].float() for name in names])
    shared = bool((books - books[:1]).abs().max() <= EXACT)
    return (books[:1] if shared else books), depth


def _pictures(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> VilaUPictures:
    """SigLIP, quantiser and decoder, in float32. Raises ValueError where they do not fit."""
    encoder = _under(weights, "rqvaesiglip.siglip_model.vision_model.")
    books, depth = _books(weights)
    width, _, patch, _ = encoder["embeddings.patch_embedding.weight"].shape
    if books.shape[2] != width:
        raise ValueError(f"codebook entries have {books.shape[2]} numbers, SigLIP's features {width}")
    side = isqrt(len(encoder["embeddings.position_embedding.weight"]))
    named = str(settings.get("pretrained_model"))
    heads = next((number for name, number in SIGLIP_HEADS.items() if name in named), None)
    own: dict[str, Any] = {"books": len(books), "codes": books.shape[1], "depth": depth}
    own["decoder"] = _decoder(weights, side * patch)
    beside: dict[str, Any] = {"vila_u": own}  # what the stock configuration does not know, it keeps
    config = SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=len(encoder["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_count(encoder, "encoder.layers."),
        num_attention_heads=_heads(heads, width, f"SigLIP ({named})"),
        image_size=side * patch,
        patch_size=patch,
        vision_use_head=any(name.startswith("head.") for name in encoder),
        **beside,
    )
    made = side * 2 ** (_count(weights, f"{DECODER}up.") - 1)
    if made != side * patch:
        raise ValueError(f"its decoder makes {made} pixels of {side} x {side} positions, SigLIP saw {side * patch}")
    quant, rest = _under(weights, "rqvaesiglip.post_quant_conv."), _under(weights, DECODER)
    state = {**encoder, "codebooks.weight": books}
    state |= {f"post_quant_conv.{name}": value for name, value in quant.items()}
    state |= {f"decoder.{name}": value for name, value in rest.items()}
    model = VilaUPictures(config)
    _fill(model, {name: value.float() for name, value in state.items()}, "rqvaesiglip")
    return model


def _decoder(weights: Mapping[str, Tensor], resolution: int) -> dict[str, Any]:
    """The settings of a VQGAN's decoder with these weights, as `ChameleonVQVAEConfig` names them."""
    levels = range(_count(weights, f"{DECODER}up."))
    widths = [len(weights[f"{DECODER}up.{level}.block.0.conv1.weight"]) for level in levels]
    attending = [level for level in levels if _under(weights, f"{DECODER}up.{level}.attn.")]
    return {
        "base_channels": widths[0],
        "channel_multiplier": [width // widths[0] for width in widths],
        "num_res_blocks": _count(weights, f"{DECODER}up.0.block.") - 1,
        "latent_channels": len(weights["rqvaesiglip.post_quant_conv.weight"]),
        "in_channels": len(weights[f"{DECODER}conv_out.weight"]),
        "attn_resolutions": [resolution // 2**level for level in attending],
        "attn_type": "vanilla" if f"{DECODER}mid.attn_1.q.weight" in weights else "none",
        "resolution": resolution,
    }


def _heads(given: Any, width: int, what: str) -> int:
    """Heads of an attention so wide. Raises ValueError where they are not said, or do not divide it."""
    if type(given) is not int or given < 1 or width % given:
        raise ValueError(f"config.json: the heads of {what}, of width {width}, are {given!r}")
    return given


def _assembled(
    llama: Any,
    pictures: VilaUPictures,
    projector: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    tower: Mapping[str, Tensor],
) -> VilaUForCausalLM:
    """The whole, in the dtype of the language model; its weights are the Llama's own, not a copy."""
    depth, books = _under(tower, "rqtransformer."), pictures.codebooks.weight
    said, config = ((settings.get("head") or {}).get("block") or {}).get("n_head"), llama.config
    width = len(depth["in_mlp_1.weight"])
    config.vila_u = {
        "books": len(books),
        "codes": books.shape[1],
        "entry": books.shape[2],
        "depth": depth["pos_emb_d"].shape[1],
        "width": width,
        "layers": _count(depth, "head_transformer.blocks."),
        "heads": _heads(said, width, "the depth transformer (rqtransformer.head.block.n_head)"),
    }
    with torch.device("meta"):
        model = VilaUForCausalLM._from_config(config, dtype=llama.dtype)
    state = {f"depth_transformer.{name}": value for name, value in depth.items()}
    state |= {f"projector.{name.removeprefix('layers.')}": value for name, value in projector.items()}
    state = {name: value.to(llama.dtype) for name, value in {**state, "codebooks.weight": books.detach()}.items()}
    model.model, model.lm_head = llama.model, llama.lm_head
    _fill(model, {**llama.state_dict(), **state}, "mm_projector and rqtransformer")
    return model


def _fill(model: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Exactly these weights. Raises ValueError that names what is missing, left over or of another shape."""
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{what}: these are not the weights of VILA-U: {' '.join(str(error).split())[:300]}") from None
