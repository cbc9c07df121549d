"""A model's chat template and image grammar, as texts of its tokenizer; and the vocabulary that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from ...configs.errors import InputError
from .sequence import CODE, ControlIds, Vocabulary

LARGEST_ID = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Template:
    """Each field is a text but `guidance` and `reencode`; control tokens are spelled as the tokenizer does.

    Kept in limner.json.
    """

    pad: str = "<pad>"
    bos: str = "<bos>"
    eos: str = "<eos>"
    boi: str = "<boi>"
    eoi: str = "<eoi>"
    start: str = "<bos>"
    """Before the prompt; spaces at its end are tokenized with the prompt's first text."""
    answer: str = "<answer>"
    """Between prompt and completion."""
    image: str = ""
    """Placeholder of a feature, where the model sees given pictures through an encoder of its own."""
    header: str = ""
    """Between `boi` and the first code (Emu3: the height and width in codes)."""
    row_end: str = ""
    """Behind each row of codes (Emu3)."""
    footer: str = ""
    """Between the last row and `eoi` (Emu3: end of frame)."""
    guidance: Literal["empty", "padded"] = "empty"
    """What the prompt is without itself: an empty one, or padding in its place (Janus)."""
    unconditional: str = ""
    """What stands before the completion where guidance takes the prompt away (Liquid); else `start` and `answer`."""
    reencode: bool = False
    """After a generated picture the model sees it once more, by its own encoder (BAGEL's way); else as codes only."""

    @property
    def lead(self) -> str:
        """The spaces at the end of `start`: most tokenizers have them in one token with the word behind them."""
        return self.start[len(self.start.rstrip(" ")) :]

    @classmethod
    def from_json(cls, value: Any) -> Template:
        """Raises ValueError for what is no template."""
        if not isinstance(value, dict):
            raise ValueError("`template` is an object")
        kinds = {field.name: bool if field.name == "reencode" else str for field in fields(cls)}
        for name, item in value.items():
            if name not in kinds or not isinstance(item, kinds[name]):
                raise ValueError(f"template: {name!r} = {item!r} is not known here")
        return cls(**value)


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """What a model's parts say of its images."""

    codes: int
    """Size of the codebook."""
    grid: tuple[int, int]
    """Rows and columns of codes."""
    features: int = 0
    """Features of a given picture, where the model has an encoder of its own."""
    code_ids: tuple[int, ...] = ()
    """Text ids that are codes, where the language model's own vocabulary holds them."""
    depth: int = 1
    """Codes of a position."""


def make_vocabulary(tokenizer: PreTrainedTokenizerFast, template: Template, images: ImageLayout) -> Vocabulary:
    """Raises InputError where the tokenizer lacks a token of the template, or ids would not hold the codes."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()

    known = tokenizer.get_vocab()
    names = ("pad", "bos", "eos", "boi", "eoi", *(("image",) if template.image else ()))
    for name in names:
        if (token := getattr(template, name)) not in known:
            raise InputError(f"the text tokenizer has no token {token} ({name}); it is not the one of this template")
    controls = ControlIds(**{name: known[getattr(template, name)] for name in names})
    rows, columns = images.grid
    row = (*[CODE] * columns, *ids(template.row_end))
    image = (*ids(template.header), *row * rows, *ids(template.footer), controls.eoi)
    given = image
    if images.features:
        if controls.image is None:
            raise InputError("template.image: missing; this model sees given pictures by features")
        given = (*[controls.image] * images.features, controls.eoi)
        if template.reencode:
            image += (controls.boi, *given)
    before, without = (*ids(template.start.rstrip(" ")), *ids(template.answer)), ids(template.unconditional)
    if len(without) > len(before) or (without and template.guidance == "padded"):
        raise InputError("template.unconditional: longer than `start` and `answer`, or beside guidance by padding")
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if len(tokenizer) + images.codes**images.depth > LARGEST_ID:
        raise InputError(
            f"the image tokenizer has {images.depth} codes of {images.codes:,} a position: their id has more than 63 "
            "bits; limner reads no such model"
        )
    held = {*(known[getattr(template, name)] for name in names), *special, *tokenizer.all_special_ids, *images.code_ids}
    return Vocabulary(
        controls=controls,
        text_size=len(tokenizer),
        image_codes=images.codes,
        image_length=rows * columns,
        start=ids(template.start.rstrip(" ")),
        answer=ids(template.answer),
        image=image,
        given=given,
        never_sampled=tuple(sorted(held - {controls.eos, controls.boi})),
        unconditional=without or before,
        pads_prompt=template.guidance == "padded",
        depth=images.depth,
    )
