"""Family "chameleon": stock `ChameleonForConditionalGeneration` (Chameleon, Anole and what is trained from them).

Codes are among the ids of its own vocabulary. transformers' forward fills their scores with the smallest number there
is; here the decoder and the head are called, so images are scored, trained and sampled like text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.modeling_chameleon import ChameleonImageVocabularyMapping

from ...configs.errors import InputError
from ...configs.registry import register
from ..pictures.contract import ImageTokenizer
from ..pictures.vqgan import ChameleonImageTokenizer, open_image_tokenizer
from ..tokens.processing import Processor
from ..tokens.template import Template
from .shared_vocabulary import SharedVocabularyPolicy
from .upstream import read_model, read_tokenizer

TEMPLATE = Template(
    pad="<pad>",
    bos="<s>",
    eos="</s>",
    boi="<racm3:break>",
    eoi="<eoss>",
    start="<s>",
    answer="<reserved08706>",
)
"""Chameleon's chat: the end-of-turn token stands behind the prompt (facebookresearch/chameleon, inference/vocab.py;
`sep_token` of transformers' processor). Anole's own scripts leave it out (GAIR-NLP/anole, interleaved_generation.py):
set `answer` to "" in limner.json for that."""


@register("family", "chameleon")
class ChameleonPolicy(SharedVocabularyPolicy):
    """Chameleon and Anole: one head, picture codes among the text ids."""

    family = "chameleon"
    model_class = ChameleonForConditionalGeneration
    never_trained = ("model.vqmodel",)

    @classmethod
    def code_ids(cls, config: Any) -> Sequence[int]:
        """Of the ids named IMGIMG, the code in the letters A to J, Z."""
        if not config.vocabulary_map:
            raise InputError("config.json: no vocabulary_map; it says which ids of Chameleon are image codes")
        ids = ChameleonImageVocabularyMapping(config.vocabulary_map).img2bpe
        return [ids[code] for code in sorted(ids)]

    @classmethod
    def from_upstream(cls, directory: Path, *, image_tokenizer: Path | None = None) -> ChameleonPolicy:
        """A folder of transformers' Chameleon: Anole with its decoder, or any with `vqgan.ckpt` beside.

        Raises InputError where a part is missing.
        """
        model = read_model(cls.model_class, directory)
        codes = cls.code_ids(model.config)
        tokenizer = read_tokenizer(directory, (TEMPLATE.boi, TEMPLATE.eoi, TEMPLATE.answer), codes)
        pictures: ImageTokenizer = (
            open_image_tokenizer(image_tokenizer)
            if image_tokenizer
            else ChameleonImageTokenizer.from_checkpoint(directory, model.config.vq_config)
        )
        return cls(model, Processor(tokenizer, pictures, TEMPLATE, code_ids=codes))
