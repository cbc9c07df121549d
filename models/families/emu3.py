"""Family "emu3": stock `Emu3ForConditionalGeneration`, and its image tokenizer, a stock `Emu3VQVAE`.

Codes are among the ids of its own vocabulary. An image says its size in codes, has an end-of-line token behind each row
and an end-of-frame token behind the last:

    <|image start|> 90*90 <|image token|> (90 codes <|extra_200|>) x 90 <|extra_201|> <|image end|>

(baaivision/Emu3, emu3/mllm/processing_emu3.py.) The model takes pictures of any size; a checkpoint of ours has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Emu3ForConditionalGeneration, Emu3VQVAE
from transformers.models.emu3.modeling_emu3 import Emu3ImageVocabularyMapping

from ...configs.errors import InputError
from ...configs.registry import register
from ..pictures.contract import IMAGE_TOKENIZERS, ImageTokenizer
from ..pictures.stock import StockImageTokenizer
from ..pictures.vqgan import open_image_tokenizer
from ..tokens.processing import Processor
from ..tokens.template import Template
from .shared_vocabulary import SharedVocabularyPolicy
from .upstream import read_model, read_tokenizer

IMAGE_SIZE = 720
"""Pixels of a side as Emu3-Gen makes them by default: 8100 codes."""


class Emu3ImageTokenizer(StockImageTokenizer):
    """The tokenizer is one of videos: it repeats a picture to four frames, makes one of codes, and back the first."""

    type = "Emu3VQVAE"
    model_class = Emu3VQVAE

    def __init__(self, model: Emu3VQVAE, image_size: int = IMAGE_SIZE):
        super().__init__(model, model.config.codebook_size, model.vision_spatial_factor, image_size)

    def codes_of(self, pixels: Tensor) -> Tensor:
        sizes = torch.full((len(pixels), 2), self.image_size)
        return torch.stack(self.model.encode(pixels, sizes).image_tokens)

    def pixels_of(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes)


IMAGE_TOKENIZERS[Emu3ImageTokenizer.type] = Emu3ImageTokenizer


def template_of(shape: tuple[int, int]) -> Template:
    """Of Emu3-Chat, for pictures of so many rows and columns of codes.

    Emu3-Gen knows no chat: it was trained to go on with a picture right behind `<|extra_203|>` and its description.
    """
    return Template(
        pad="<|endoftext|>",
        bos="<|extra_203|>",
        eos="<|extra_204|>",
        boi="<|image start|>",
        eoi="<|image end|>",
        start="<|extra_203|>You are a helpful assistant. USER: ",
        answer=" ASSISTANT:",
        header=f"{shape[0]}*{shape[1]}<|image token|>",
        row_end="<|extra_200|>",
        footer="<|extra_201|>",
    )


@register("family", "emu3")
class Emu3Policy(SharedVocabularyPolicy):
    """Emu3: one head, picture codes among the text ids, rows that end."""

    family = "emu3"
    model_class = Emu3ForConditionalGeneration
    never_trained = ("model.vqmodel",)

    @classmethod
    def code_ids(cls, config: Any) -> Sequence[int]:
        """Of the ids named <|visual token 000000|> and so on."""
        if not config.vocabulary_map:
            raise InputError("config.json: no vocabulary_map; it says which ids of Emu3 are image codes")
        ids = Emu3ImageVocabularyMapping(config.vocabulary_map).img2bpe
        return [ids[code] for code in sorted(ids)]

    @classmethod
    def from_upstream(
        cls, directory: Path, *, image_tokenizer: Path | None = None, image_size: int | None = None
    ) -> Emu3Policy:
        """A folder of transformers' Emu3 (Emu3-Chat-hf, Emu3-Gen-hf), for pictures of `image_size` pixels a side.

        Emu3's own preprocessing makes none smaller than 512 x 512. Raises InputError where a part is missing.
        """
        if image_tokenizer and image_size:
            raise InputError("--image-size: the image tokenizer that --image-tokenizer names has a size of its own")
        model = read_model(cls.model_class, directory)
        pictures: ImageTokenizer = (
            open_image_tokenizer(image_tokenizer)
            if image_tokenizer
            else Emu3ImageTokenizer(deepcopy(model.model.vqmodel).float(), image_size or IMAGE_SIZE)
        )
        template, codes = template_of(pictures.shape), cls.code_ids(model.config)
        controls = (template.boi, template.eoi, template.row_end, template.footer, "<|image token|>")
        tokenizer = read_tokenizer(directory, controls, codes)
        return cls(model, Processor(tokenizer, pictures, template, code_ids=codes))
