"""Chameleon's VQGAN, which Anole, Liquid and Lumina-mGPT use as well: 1024 codes of 8192 for a picture of 512 pixels.

transformers has its encoder (`ChameleonVQVAE`) and no decoder. The decoder here is that of taming-transformers (Esser
et al., arXiv 2012.09841), made of the stock encoder's blocks, with the names under which its weights were released:

    vqgan.ckpt (Meta's; Liquid ships a copy)       decoder.up.3.block.0.conv1.weight, with encoder.*, quantize.* ...
    Anole in transformers' layout (leloy's)        model.vqmodel.decoder.up.3.block.0.conv1.weight ... in safetensors
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, silu
from transformers import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import (
    ChameleonVQVAE,
    ChameleonVQVAEEncoderAttnBlock,
    ChameleonVQVAEEncoderResnetBlock,
)

from ...configs.errors import InputError, reading
from ...configs.files import plain_file
from .contract import IMAGE_TOKENIZERS, SETTINGS_FILE, ImageTokenizer, load_image_tokenizer
from .stock import StockImageTokenizer

WEIGHTS = "vqgan.ckpt"
"""As Meta calls the file, with its settings in `vqgan.yaml` beside it."""
RELEASED = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "double_z": "double_latent",
    "z_channels": "latent_channels",
    "n_embed": "num_embeddings",
}
"""Settings of taming-transformers that have another name in transformers."""


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each with its attention, and the way to the next."""

    def __init__(self, config: ChameleonVQVAEConfig, channels: int, width: int, attends: bool, last: bool):
        super().__init__()
        blocks = range(config.num_res_blocks + 1)
        self.block = nn.ModuleList(
            ChameleonVQVAEEncoderResnetBlock(config, width if index else channels, width) for index in blocks
        )
        self.attn = nn.ModuleList(_attention(width, attends) for _ in blocks)
        self.upsample = nn.Identity() if last else Upsample(width)

    def forward(self, hidden: Tensor) -> Tensor:
        for block, attention in zip(self.block, self.attn, strict=True):
            hidden = attention(block(hidden))
        return self.upsample(hidden)


class VQGANDecoder(nn.Module):
    """Latents [n, latent_channels, h, w] to pixels [n, 3, S, S]; `up[0]` is the last level, of the full resolution."""

    def __init__(self, config: ChameleonVQVAEConfig):
        super().__init__()
        attends = config.attn_type == "vanilla"
        widths = [config.base_channels * factor for factor in config.channel_multiplier]
        middle = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, middle, 3, padding=1)
        self.mid = nn.Sequential(
            OrderedDict(
                block_1=ChameleonVQVAEEncoderResnetBlock(config, middle, middle),
                attn_1=_attention(middle, attends),
                block_2=ChameleonVQVAEEncoderResnetBlock(config, middle, middle),
            )
        )
        self.up = nn.ModuleList()
        for level, (width, wider) in enumerate(zip(widths, [*widths[1:], middle], strict=True)):
            here = attends and config.resolution // 2**level in (config.attn_resolutions or ())
            self.up.append(Level(config, wider, width, here, last=level == 0))
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents))
        for level in reversed([*self.up]):
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(hidden)))


def _attention(channels: int, attends: bool) -> nn.Module:
    return ChameleonVQVAEEncoderAttnBlock(channels) if attends else nn.Identity()


class ChameleonVQGAN(ChameleonVQVAE):
    """The stock encoder and codebook, and the decoder. Its folder opens as a stock `ChameleonVQVAE` too."""

    def __init__(self, config: ChameleonVQVAEConfig):
        super().__init__(config)
        self.decoder = VQGANDecoder(config)
        self.post_init()

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [n, h, w] to pixels [n, 3, S, S]."""
        return self.reconstruct(self.quantize.embedding(codes).movedim(-1, 1))

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Quantised latents [n, embed_dim, h, w] to pixels [n, 3, S, S]."""
        return self.decoder(self.post_quant_conv(latents))


class ChameleonImageTokenizer(StockImageTokenizer):
    type = "ChameleonVQGAN"
    model_class = ChameleonVQGAN

    def __init__(self, model: ChameleonVQGAN, image_size: int | None = None):
        config = model.config
        factor = 2 ** (len(config.channel_multiplier) - 1)
        super().__init__(model, config.num_embeddings, factor, image_size or config.resolution)

    def codes_of(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels).image_tokens.view(-1, *self.shape)

    def pixels_of(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)

    @classmethod
    def from_released(cls, path: Path) -> ChameleonImageTokenizer:
        """Of a `vqgan.ckpt` (or the same weights as .safetensors), with the settings of the `.yaml` beside it.

        Without one they are Chameleon's. Raises InputError for weights of another architecture.
        """
        with reading(path):
            if path.suffix == ".safetensors":
                loaded: Any = load_file(plain_file(path, None))
            else:
                loaded = torch.load(plain_file(path, None), map_location="cpu", weights_only=True)
        state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
        # The loss of the VQGAN's training (discriminator, LPIPS) is no part of the model.
        state = {name: value for name, value in state.items() if not name.startswith("loss.")}
        return cls(_with_weights(path, released_config(path.with_suffix(".yaml")), state))

    @classmethod
    def from_checkpoint(cls, directory: Path, config: ChameleonVQVAEConfig) -> ChameleonImageTokenizer:
        """The VQGAN inside a Chameleon checkpoint that has the decoder too (Anole's). Raises InputError without it."""
        prefix = "model.vqmodel."
        state: dict[str, Tensor] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with reading(path), safe_open(plain_file(path, None), framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
                state |= {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        if not any(name.startswith("decoder.") for name in state):
            raise InputError(
                f"{directory}: this checkpoint has no decoder of pictures; name Chameleon's {WEIGHTS} "
                "(--image-tokenizer)"
            )
        return cls(_with_weights(directory, config, state))


IMAGE_TOKENIZERS[ChameleonImageTokenizer.type] = ChameleonImageTokenizer


def released_config(path: Path) -> ChameleonVQVAEConfig:
    """Settings in the form of taming-transformers (`vqgan.yaml`); Chameleon's where there is no such file."""
    if not path.is_file():
        return ChameleonVQVAEConfig()
    with reading(path):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
        given = {RELEASED.get(name, name): value for name, value in {**given, **given["ddconfig"]}.items()}
        known = {name: given[name] for name in ChameleonVQVAEConfig().to_dict() if name in given}
        return ChameleonVQVAEConfig(**known)


def open_image_tokenizer(path: Path) -> ImageTokenizer:
    """A folder that limner saved, or Chameleon's VQGAN as it was released: its file, or a folder that holds it."""
    if path.is_file():
        return ChameleonImageTokenizer.from_released(path)
    if (path / SETTINGS_FILE).is_file():
        return load_image_tokenizer(path)
    if (path / WEIGHTS).is_file():
        return ChameleonImageTokenizer.from_released(path / WEIGHTS)
    raise InputError(f"{path}: no image tokenizer: neither {SETTINGS_FILE} nor {WEIGHTS} is there")


def _with_weights(path: Path, config: ChameleonVQVAEConfig, state: Mapping[str, Any]) -> ChameleonVQGAN:
    """A model in float32 with exactly these weights."""
    model = ChameleonVQGAN(config)
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    except (RuntimeError, AttributeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"{path}: these are not the weights of this VQGAN: {said[:300]}") from None
    return model
