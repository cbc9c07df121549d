"""The processor: documents to token sequences and back. Nothing else makes or reads a TokenSequence."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os.path import commonprefix
from typing import Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...configs.errors import InputError
from ..documents.candidates import cut_at_markers, marker
from ..documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..pictures.contract import ImageTokenizer
from ..pictures.vision import Vision
from .sequence import CODE, ImageSlot, TokenSequence
from .template import ImageLayout, Template, make_vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A completion as the processor reads it back from ids."""

    document: InterleavedDocument
    """Segments in the order they were written; pictures have codes only until `paint`."""
    segment_C: Tensor
    """Index of the segment a token belongs to, int64 [C]; the number of segments for `<eos>` and for a cut image."""
    chosen_C: Tensor
    """True where the model chose the token, False where the grammar of images forced it, bool [C]."""
    slots: tuple[ImageSlot, ...]
    """Whole images, counted from the completion's first token."""
    ended: bool
    """False where the length limit came before `<eos>`."""
    cut_image: bool
    """True where the limit fell inside an image; the image is dropped, never decoded from half its codes."""
    faults: Counter[str]
    """Markers that place nothing, by kind (`candidates.cut_at_markers`); they stay in the text."""


class Processor:
    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        image_tokenizer: ImageTokenizer,
        template: Template | None = None,
        vision: Vision | None = None,
        code_ids: Sequence[int] = (),
    ):
        """`code_ids`: the text ids that are image codes, where the language model's vocabulary holds them itself."""
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.template = template or Template()
        self.vision = vision
        self.code_ids = tuple(code_ids)
        features = vision.features if vision else 0
        images = ImageLayout(
            image_tokenizer.codes, image_tokenizer.shape, features, self.code_ids, image_tokenizer.depth
        )
        self.vocabulary = make_vocabulary(tokenizer, self.template, images)

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text from outside: `<boi>` or `<eos>` spelled in it stay letters.

        Raises InputError for broken Unicode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"text is no valid Unicode: {error}; JSON's lone surrogates have no meaning") from None
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode(self, document: InterleavedDocument) -> TokenSequence:
        """Tokens of a document; without trainable segments it is a prompt and ends where the answer begins."""
        return self.encode_all([document])[0]

    def length_of(self, document: InterleavedDocument) -> int:
        """Tokens that `encode` makes of it; its pictures need not go through the image tokenizer for that."""
        codes_N = np.zeros(self.vocabulary.code_shape, np.int64)
        parts = [replace(s, codes_N=codes_N) if isinstance(s, ImageSegment) else s for s in document.segments]
        return len(self.encode(replace(document, segments=tuple(parts))))

    def encode_all(self, documents: Sequence[InterleavedDocument]) -> list[TokenSequence]:
        """Like `encode`; all pictures without cached codes go through the image tokenizer together.

        Raises InputError naming the document where a picture does not decode, or does not belong.
        """
        coded = [
            _pixels(image, document) for document in documents for image in document.images if self._encodes(image)
        ]
        codes = iter(self.image_tokenizer.encode(coded) if coded else ())
        return [self._layout(document, codes) for document in documents]

    def _encodes(self, image: ImageSegment) -> bool:
        """Does the image tokenizer have to make its codes?"""
        return image.codes_N is None and image.origin != "inserted" and (self.vision is None or image.trainable)

    def _layout(self, document: InterleavedDocument, codes: Iterator[np.ndarray]) -> TokenSequence:
        vocabulary = self.vocabulary
        layout = _Layout()
        layout.put(vocabulary.start)
        prompt_length, insertable = 0, set(_offered(document))
        for index, segment in enumerate(document.segments):
            if segment.trainable and not prompt_length:
                layout.put(vocabulary.answer)
                prompt_length = len(layout.ids)
            try:
                lead = self.template.lead if index == 0 and not segment.trainable else ""
                if isinstance(segment, TextSegment):
                    layout.put(self.text_ids(lead + segment.text), index, segment.trainable)
                elif segment.origin == "inserted":
                    if segment.candidate not in insertable:
                        raise InputError(f"candidate {segment.candidate} is not offered, or stands already")
                    insertable.remove(segment.candidate)
                    layout.put(self.text_ids(marker(segment.candidate)), index, segment.trainable)
                else:
                    layout.put(self.text_ids(lead), index)
                    self._put_image(layout, segment, index, codes)
            except ValueError as error:
                raise InputError(f"document {document.id!r}, segment {index}: {error}") from None
        if prompt_length:
            layout.put([vocabulary.controls.eos], len(document.segments), True)
        else:
            layout.put(vocabulary.answer)
            prompt_length = len(layout.ids)
        ids, segments, trainable = map(torch.tensor, (layout.ids, layout.segments, layout.trainable))
        return TokenSequence(ids, segments, trainable, prompt_length, tuple(layout.slots))

    def _put_image(self, layout: _Layout, segment: ImageSegment, index: int, codes: Iterator[np.ndarray]) -> None:
        """`<boi>` and the pattern: codes the model could have written, or features of a given picture."""
        vocabulary = self.vocabulary
        layout.put([vocabulary.controls.boi], index, segment.trainable)
        if self.vision is not None and not segment.trainable:
            image = segment if segment.image is not None else self._painted([segment])[0]
            layout.put_image(vocabulary.given, (), index, "given", self.vision([image.pixels()])[0])
            return
        values = np.asarray(segment.codes_N if segment.codes_N is not None else next(codes))
        shape, most = vocabulary.code_shape, vocabulary.image_codes
        if values.dtype.kind not in "iu" or values.shape != shape or values.min() < 0 or values.max() >= most:
            raise InputError("these image codes are not this image tokenizer's")
        ids = vocabulary.ids_of(torch.from_numpy(values.astype(np.int64))).tolist()
        role: Literal["given", "generated"] = "generated" if segment.trainable else "given"
        again = vocabulary.controls.image in vocabulary.image
        layout.put_image(vocabulary.image, ids, index, role, self.seen_again(values) if again else None)

    def seen_again(self, codes_N: np.ndarray) -> Tensor:
        """What the model's own encoder gets of a generated picture, [3, S, S].

        Decoded alone: in a batch rounding may fall otherwise, and sampler and training must see the same pixels.
        """
        assert self.vision is not None
        return self.vision(self.image_tokenizer.decode(codes_N[None]))[0]

    def read(self, ids_C: Sequence[int], candidates: Mapping[int, ImageSegment] | None = None) -> Reading:
        """The document that a completion's joint ids say; the sampler's, so they obey the grammar up to a cut.

        candidates: those of the prompt (`InterleavedDocument.candidates`); where it offers none, `<img1>` is text.
        """
        control, vocabulary = self.vocabulary.controls, self.vocabulary
        ids = [int(i) for i in ids_C]
        at_codes = [place for place, forced in enumerate(vocabulary.image) if forced == CODE]
        parts: list[Segment] = []
        owner: list[int] = []
        chosen: list[bool] = []
        slots: list[ImageSlot] = []
        text: list[int] = []
        placed: set[int] = set()
        faults: Counter[str] = Counter()
        ended, cut, at = False, False, 0

        def close_text() -> None:
            for segment, tokens in self.read_text(text, candidates or {}, placed, faults):
                owner.extend([len(parts)] * tokens)
                chosen.extend([True] * tokens)
                parts.append(segment)
            text.clear()

        while at < len(ids):
            taken = 1
            if ids[at] == control.boi:
                close_text()
                image = ids[at + 1 : at + 1 + len(vocabulary.image)]
                taken += len(image)
                owner.extend([len(parts)] * taken)
                chosen.extend([True, *(forced == CODE for forced in vocabulary.image[: len(image)])])
                if len(image) <= vocabulary.last_code:
                    cut = True
                else:
                    values = vocabulary.codes_of(torch.tensor([image[place] for place in at_codes])).numpy()
                    seen = self.seen_again(values) if vocabulary.controls.image in image else None
                    slots.append(ImageSlot(at + 1, at + len(image), len(parts), "generated", seen))
                    parts.append(ImageSegment(None, trainable=True, origin="generated", codes_N=values))
            elif ids[at] == control.eos:
                close_text()
                ended = True
                owner.append(len(parts))
                chosen.append(True)
            else:
                text.append(ids[at])
            at = len(ids) if ended else at + taken
        close_text()
        document = InterleavedDocument(tuple(parts))
        owner_C, chosen_C = torch.tensor(owner, dtype=torch.long), torch.tensor(chosen, dtype=torch.bool)
        return Reading(document, owner_C, chosen_C, tuple(slots), ended, cut, faults)

    def read_text(
        self, ids: Sequence[int], candidates: Mapping[int, ImageSegment], placed: set[int], faults: Counter[str]
    ) -> list[tuple[Segment, int]]:
        """The segments that a run of text ids says, and the number of ids of each.

        A marker of a candidate that is not `placed` yet is its picture, and `placed` takes it in; markers that place
        nothing are counted in `faults`. An id that reaches over a marker's edge belongs to the segment it begins in.
        """
        if not ids:
            return []
        words = self._decode(ids)
        if not candidates:
            return [(TextSegment(words, trainable=True), len(ids))]

        def said_before(number: int) -> int:
            return len(commonprefix([self._decode(ids[:number]), words]))

        def first_id(start: int, number: int | None) -> int:
            """The first id that begins at this character or later; bytes that are no character stay before a marker."""
            every = range(len(ids))
            found = bisect_left(every, start, key=said_before)
            return found if number is None else max(found, bisect_right(every, start, key=said_before) - 1)

        parts = cut_at_markers(words, candidates, placed, faults)
        first = [first_id(start, number) if start else 0 for start, _, number in parts]
        segments: list[Segment] = [
            TextSegment(words[start:stop], trainable=True) if number is None else candidates[number]
            for start, stop, number in parts
        ]
        return list(zip(segments, (b - a for a, b in pairwise([*first, len(ids)])), strict=True))

    def _decode(self, ids: Sequence[int]) -> str:
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def join(self, prompt: TokenSequence, ids_C: Tensor, reading: Reading) -> TokenSequence:
        """A prompt and its sampled completion as one sequence: `segment_T` counts the completion's own segments."""
        shift = len(prompt)
        slots = [replace(slot, start=slot.start + shift, stop=slot.stop + shift) for slot in reading.slots]
        return TokenSequence(
            torch.cat([prompt.ids_T, ids_C]),
            torch.cat([torch.full_like(prompt.segment_T, -1), reading.segment_C]),
            torch.cat([torch.zeros_like(prompt.trainable_T), reading.chosen_C]),
            shift,
            (*prompt.slots, *slots),
        )

    def paint(self, documents: Sequence[InterleavedDocument]) -> list[InterleavedDocument]:
        """Decodes the codes of all pictures that have no pixels yet, in one batch."""
        painted = iter(self._painted([i for document in documents for i in document.images if i.image is None]))

        def paint(segment: Segment) -> Segment:
            return next(painted) if isinstance(segment, ImageSegment) and segment.image is None else segment

        return [replace(document, segments=tuple(map(paint, document.segments))) for document in documents]

    def _painted(self, images: Sequence[ImageSegment]) -> list[ImageSegment]:
        if not images:
            return []
        pictures = self.image_tokenizer.decode(np.stack([image.codes_N for image in images]))  # type: ignore[arg-type]
        return [replace(image, image=picture) for image, picture in zip(images, pictures, strict=True)]


def _pixels(image: ImageSegment, document: InterleavedDocument) -> Image.Image:
    try:
        return image.pixels()
    except ValueError as error:
        raise InputError(f"document {document.id!r}: {error}") from None


def _offered(document: InterleavedDocument) -> list[int]:
    """Numbers of the candidates. Raises InputError for one that two pictures have."""
    numbers = [i.candidate for i in document.images if i.origin == "given" and i.candidate is not None]
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise InputError(f"document {document.id!r}: two pictures are candidate {twice[0]}")
    return numbers


@dataclass(slots=True)
class _Layout:
    """The columns of a sequence while it is written."""

    ids: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    trainable: list[bool] = field(default_factory=list)
    slots: list[ImageSlot] = field(default_factory=list)

    def put(self, new: Sequence[int], segment: int = -1, train: bool = False) -> None:
        self.ids.extend(new)
        self.segments.extend([segment] * len(new))
        self.trainable.extend([train] * len(new))

    def put_image(
        self,
        pattern: Sequence[int],
        codes: Sequence[int],
        segment: int,
        role: Literal["given", "generated"],
        pixels: Tensor | None,
    ) -> None:
        start, left = len(self.ids), iter(codes)
        for forced in pattern:
            self.put([next(left) if forced == CODE else forced], segment, forced == CODE and role == "generated")
        self.slots.append(ImageSlot(start, len(self.ids) - 1, segment, role, pixels))
