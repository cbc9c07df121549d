"""What image tokenizers made of a transformers VQ model share: square pictures of one size, a square grid of codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ...configs.errors import InputError
from .contract import SETTINGS_FILE, centred_squares, complete, fingerprint


class StockImageTokenizer(nn.Module):
    """A subclass says how its model makes codes of pixels and pixels of codes."""

    type: ClassVar[str]
    """Name in the settings file."""
    depth = 1
    model_class: ClassVar[Any]

    def __init__(self, model: Any, codes: int, downsampling: int, image_size: int):
        super().__init__()
        if image_size < 1 or image_size % downsampling:
            raise InputError(
                f"image tokenizer: image size {image_size} is no multiple of its downsampling {downsampling}"
            )
        self.model = model.requires_grad_(False).eval()
        self.image_size = image_size
        """Pixels of a side."""
        self.codes = codes
        self.shape = (image_size // downsampling, image_size // downsampling)

    def codes_of(self, pixels: Tensor) -> Tensor:
        """[n, 3, S, S] in -1..1 to codes [n, rows, columns], or [n, rows, columns, D]."""
        raise NotImplementedError

    def pixels_of(self, codes: Tensor) -> Tensor:
        """Codes as `codes_of` gives them to [n, 3, S, S], about -1..1."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], batch: int = 8) -> list[np.ndarray]:
        codes: list[np.ndarray] = []
        for start in range(0, len(images), batch):
            pixels = centred_squares(images[start : start + batch], self.image_size).to(self.codebook())
            codes.extend(self.codes_of(pixels).flatten(1, 2).cpu().numpy().astype(np.int32))
        return codes

    @torch.no_grad()
    def decode(self, codes: np.ndarray, batch: int = 8) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        device = self.codebook().device
        for start in range(0, len(codes), batch):
            part = torch.as_tensor(np.asarray(codes[start : start + batch]), device=device).long()
            pixels = self.pixels_of(part.unflatten(1, self.shape)).float()
            # Cut off, not rounded, as the models' own code does it: the pixels are to be the same.
            array = ((pixels + 1) / 2 * 255).clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
            pictures.extend(map(Image.fromarray, array))
        return pictures

    def codebook(self) -> Tensor:
        return self.model.quantize.embedding.weight.detach()

    def fingerprint(self) -> str:
        return fingerprint(self.model, f"{self.type} {self.image_size}")

    def save_pretrained(self, directory: Path) -> None:
        """What transformers writes, and one JSON of ours beside it."""
        self.model.save_pretrained(directory, safe_serialization=True)
        settings = {"type": self.type, "image_size": self.image_size}
        (directory / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n")

    @classmethod
    def open(cls, directory: Path, settings: dict[str, Any]) -> Self:
        loaded: Any = cls.model_class.from_pretrained(directory, use_safetensors=True, output_loading_info=True)
        return cls(complete(directory, loaded), settings["image_size"])  # type: ignore[call-arg, arg-type]
