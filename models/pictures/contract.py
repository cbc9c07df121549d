"""Image tokenizers: pixels <-> image codes. This one is a stock `diffusers.VQModel`.

The pixels may be folded first, `patch` x `patch` of them into channels (`torch.nn.functional.pixel_unshuffle`), so
that a small model works at the resolution of its codes; `patch` 1 is the usual convolutional VQ model. With `tiled`
each code sees its own part of the picture only: convolutions and group norms would let every code depend on the whole
picture, and a small language model then has to learn what the background looks like from afar.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from ...configs.bounds import Range
from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from ..documents.document import to_rgb
from ..sizes import check_sizes
from .residual import entries, residual_codes
from .upstream import VQModel, complete

SETTINGS_FILE = "image_tokenizer.json"


class ImageTokenizer(Protocol):
    """Codes of a picture are an int array [N], row by row, or [N, D] where a position has D residual codes."""

    codes: int
    """Size of the codebook, of each where depths have their own."""
    shape: tuple[int, int]
    """Rows and columns of the positions of a picture; N is their product."""
    depth: int
    """D."""

    def encode(self, images: Sequence[Image.Image]) -> list[np.ndarray]: ...

    def decode(self, codes: np.ndarray) -> list[Image.Image]:
        """Codes [n, N] or [n, N, D] to n RGB pictures."""
        ...

    def fingerprint(self) -> str:
        """Hash of weights and settings: cached codes of another tokenizer are refused by it."""
        ...

    def codebook(self) -> Tensor:
        """Embedding of each code, [codes, E], or [1 or D, codes, E] where a position has D of them.

        A language model may start its own from it.
        """
        ...

    def save_pretrained(self, directory: Path) -> None: ...

    def to(self, device: torch.device) -> ImageTokenizer: ...


class VQImageTokenizer(nn.Module):
    """With `depth` D a position has D residual codes; the model's codebook is then D of them, one behind another."""

    def __init__(self, model: VQModel, image_size: int, patch: int = 1, tiled: bool = False, depth: int = 1):
        super().__init__()
        self.depth = depth
        self.model = model
        self.image_size = image_size
        self.patch = patch
        self.tiled = tiled
        downsampling = patch * 2 ** (len(model.config["block_out_channels"]) - 1)
        if image_size % downsampling:
            raise InputError(
                f"image tokenizer: image size {image_size} is no multiple of its downsampling {downsampling}"
            )
        self.tile = downsampling
        """Pixels of a side that one code stands for."""
        self.grid = image_size // downsampling
        self.codes: int = model.config["num_vq_embeddings"] // depth
        self.shape = (self.grid, self.grid)

    @classmethod
    def create(
        cls,
        image_size: int,
        patch: int,
        channels: Sequence[int],
        codes: int,
        code_size: int,
        tiled: bool = False,
        depth: int = 1,
    ) -> VQImageTokenizer:
        """A new tokenizer of random weights; each resolution of `channels` but the last is halved."""
        blocks, folded = len(channels), 3 * patch**2
        model = VQModel(
            in_channels=folded,
            out_channels=folded,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            latent_channels=code_size,
            vq_embed_dim=code_size,
            num_vq_embeddings=depth * codes,
            norm_num_groups=8,
            sample_size=image_size // patch,
            mid_block_add_attention=False,
        )
        model.quantize.legacy = False  # the default multiplies beta with the wrong of the two commitment terms
        return cls(model, image_size, patch, tiled, depth)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures to [n, 3, S, S] in -1..1."""
        return centred_squares(images, self.image_size).to(next(self.model.parameters()).device)

    def latents(self, pixels: Tensor) -> Tensor:
        """[n, 3, S, S] to latents before quantisation [n, D, g, g]; S is any multiple of `tile`."""
        grid = pixels.shape[-1] // self.tile
        if self.tiled:
            pixels = rearrange(pixels, "n c (i h) (j w) -> (n i j) c h w", i=grid, j=grid)
        latents = self.model.quant_conv(self.model.encoder(F.pixel_unshuffle(pixels, self.patch)))
        return rearrange(latents, "(n i j) d 1 1 -> n d i j", i=grid, j=grid) if self.tiled else latents

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Latents, quantised or not, to pixels [n, 3, S, S]."""
        grid = latents.shape[-1]
        if self.tiled:
            latents = rearrange(latents, "n d i j -> (n i j) d 1 1")
        pixels = F.pixel_shuffle(self.model.decoder(self.model.post_quant_conv(latents)), self.patch)
        return rearrange(pixels, "(n i j) c h w -> n c (i h) (j w)", i=grid, j=grid) if self.tiled else pixels

    def quantised(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [n, E, g, g] as their codes have them, and the codes, [n, g, g] or [n, g, g, D]."""
        if self.depth == 1:
            found, _, (_, _, codes) = self.model.quantize(latents)
            return found, codes.view(len(latents), *latents.shape[2:])
        vectors = latents.movedim(1, -1)
        codes = residual_codes(vectors.flatten(0, 2), self._books(), self.depth).view(*vectors.shape[:3], -1)
        return entries(codes, self._books()).sum(-2).movedim(-1, 1), codes

    def _books(self) -> Tensor:
        return self.model.quantize.embedding.weight.unflatten(0, (self.depth, self.codes))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], batch: int = 256) -> list[np.ndarray]:
        codes = []
        for start in range(0, len(images), batch):
            latents = self.latents(self.pixels(images[start : start + batch]))
            codes.extend(self.quantised(latents)[1].flatten(1, 2).cpu().numpy().astype(np.int32))
        return codes

    @torch.no_grad()
    def decode(self, codes: np.ndarray, batch: int = 256) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        device = next(self.model.parameters()).device
        for start in range(0, len(codes), batch):
            part = torch.as_tensor(np.asarray(codes[start : start + batch]), device=device).long()
            found = entries(part.view(len(part), -1, self.depth), self._books()).sum(-2)
            pixels = self.reconstruct(found.movedim(1, 2).unflatten(2, self.shape).contiguous())
            array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            pictures.extend(map(Image.fromarray, array))
        return pictures

    def codebook(self) -> Tensor:
        books = self._books().detach()
        return books[0] if self.depth == 1 else books

    def fingerprint(self) -> str:
        several = f" {self.depth}" if self.depth > 1 else ""
        return fingerprint(self.model, f"{self.image_size} {self.patch} {self.tiled}{several}")

    def save_pretrained(self, directory: Path) -> None:
        """A folder that plain diffusers opens, and one JSON of ours beside its files."""
        self.model.save_pretrained(directory, safe_serialization=True)
        _forget_origin(directory / "config.json")
        settings = {"type": "VQModel", "image_size": self.image_size, "patch": self.patch, "tiled": self.tiled}
        settings |= {"depth": self.depth} if self.depth > 1 else {}
        (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def open(cls, directory: Path, settings: dict[str, Any]) -> VQImageTokenizer:
        loaded: Any = VQModel.from_pretrained(directory, use_safetensors=True, output_loading_info=True)
        model = complete(directory, loaded)
        depth = settings.get("depth", 1)
        return cls(model, settings["image_size"], settings["patch"], settings["tiled"], depth).eval()


def _forget_origin(path: Path) -> None:
    """diffusers notes in a configuration from which folder it was once read: a path of one machine."""
    config = parse_json(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def centred_squares(images: Sequence[Image.Image], side: int) -> Tensor:
    """The largest centred square of each picture, scaled, [n, 3, side, side] in -1..1."""
    size = (side, side)
    squares = [
        image if image.size == size else ImageOps.fit(to_rgb(image), size, Image.Resampling.LANCZOS) for image in images
    ]
    array = np.stack([np.asarray(to_rgb(square)) for square in squares])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def fingerprint(model: nn.Module, settings: str) -> str:
    """Hash of an image tokenizer's weights and settings."""
    digest = hashlib.sha256(settings.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


LARGEST_PICTURE = 4096
"""Pixels of a side."""
IMAGE_TOKENIZERS: dict[str, Any] = {"VQModel": VQImageTokenizer}
"""By the `type` in their settings file."""


def load_image_tokenizer(directory: Path) -> ImageTokenizer:
    """Raises InputError where the folder holds no image tokenizer that is known here."""
    path = Path(directory) / SETTINGS_FILE
    if not path.is_file():
        raise InputError(f"{directory}: no {SETTINGS_FILE}; this folder holds no image tokenizer that limner saved")
    with reading(directory):
        settings = parse_json(path.read_text(encoding="utf-8"))
        if settings["type"] not in IMAGE_TOKENIZERS:
            known = ", ".join(sorted(IMAGE_TOKENIZERS))
            raise InputError(f"{path}: type {settings['type']!r} is not known; known: {known}")
        if not Range(1, LARGEST_PICTURE).holds(settings["image_size"]):
            raise InputError(f"{path}: image_size: {settings['image_size']}; 1 to {LARGEST_PICTURE:,} pixels")
        check_sizes(directory)
        return IMAGE_TOKENIZERS[settings["type"]].open(directory, settings)
