"""A model's own picture encoder, as far as preprocessing goes: pictures in, its pixel tensors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor


class Vision:
    """A stock transformers image processor, and how many features its encoder makes of a picture."""

    def __init__(self, processor: Any, features: int):
        self.processor = processor
        self.features = features

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures to float32 [n, 3, S, S]."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"].float()

    def save_pretrained(self, directory: Path) -> None:
        self.processor.save_pretrained(directory)
