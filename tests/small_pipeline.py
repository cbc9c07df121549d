"""A tiny Stable Diffusion of the stock classes: random weights, letters for tokens, pictures of 32 x 32."""

import string
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LONGEST = 40
"""Tokens, those of begin and end included, that the text encoder reads."""


def save_pipeline(folder: Path) -> str:
    """Writes it, and says where."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer: Any = CLIPTokenizer(vocab={token: number for number, token in enumerate(vocabulary)}, merges=[])
    tokenizer.model_max_length = LONGEST
    torch.manual_seed(0)
    text_config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=LONGEST,
        projection_dim=16,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
    )
    blocks = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    parts: Any = {"scheduler": DDIMScheduler(clip_sample=False, steps_offset=1), "safety_checker": None}
    parts["feature_extractor"] = None
    StableDiffusionPipeline(
        vae=AutoencoderKL(latent_channels=4, **blocks),
        text_encoder=CLIPTextModel(text_config),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=32,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            mid_block_type="UNetMidBlock2DCrossAttn",
            cross_attention_dim=16,
            attention_head_dim=4,
            **blocks,
        ),
        **parts,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return str(folder)
