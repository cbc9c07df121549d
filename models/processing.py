"""The processor: documents to token sequences and back. Nothing else makes or reads a TokenSequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .document import ImageSegment, InterleavedDocument, Segment, TextSegment
from .errors import InputError
from .image_tokenizer import ImageTokenizer
from .sequence import ImageSlot, TokenSequence, Vocabulary
from .text_tokenizer import control_ids


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A completion as the processor reads it back from ids."""

    document: InterleavedDocument
    """Segments in the order they were written; pictures have codes only until `paint`."""
    segment_C: Tensor
    """Index of the segment a token belongs to, int64 [C]; the number of segments for `<eos>` and for a cut image."""
    ended: bool
    """False where the length limit came before `<eos>`."""
    cut_image: bool
    """True where the limit fell inside an image; the image is dropped, never decoded from half its codes."""


class Processor:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_tokenizer: ImageTokenizer):
        self.tokenizer = tokenizer
        self.image_tokenizer = image_tokenizer
        self.vocabulary = Vocabulary(
            control_ids(tokenizer), len(tokenizer), image_tokenizer.codes, image_tokenizer.tokens_per_image
        )

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
        """Tokens of a document; without trainable segments it is a prompt and ends with `<answer>`."""
        return self.encode_all([document])[0]

    def encode_all(self, documents: Sequence[InterleavedDocument]) -> list[TokenSequence]:
        """Like `encode`; all pictures without cached codes go through the image tokenizer together."""
        missing = [image for document in documents for image in document.images if image.codes_N is None]
        codes = iter(self.image_tokenizer.encode([image.pixels() for image in missing]) if missing else ())
        return [self._layout(document, codes) for document in documents]

    def _layout(self, document: InterleavedDocument, codes) -> TokenSequence:
        control, size = self.vocabulary.controls, self.vocabulary.text_size
        ids, segments, trainable, slots = [control.bos], [-1], [False], []
        prompt_length = 0

        def put(new: list[int], segment: int, train: bool) -> None:
            ids.extend(new)
            segments.extend([segment] * len(new))
            trainable.extend([train] * len(new))

        for index, segment in enumerate(document.segments):
            if segment.trainable and not prompt_length:
                put([control.answer], -1, False)
                prompt_length = len(ids)
            if isinstance(segment, TextSegment):
                try:
                    put(self.text_ids(segment.text), index, segment.trainable)
                except InputError as error:
                    raise InputError(f"document {document.id!r}, segment {index}: {error}") from None
                continue
            if segment.origin == "inserted":
                raise InputError(
                    f"document {document.id!r}, segment {index}: this model has no markers for inserted images"
                )
            values = np.asarray(segment.codes_N if segment.codes_N is not None else next(codes))
            shape, most = (self.vocabulary.image_length,), self.vocabulary.image_codes
            if values.dtype.kind not in "iu" or values.shape != shape or values.min() < 0 or values.max() >= most:
                raise InputError(
                    f"document {document.id!r}, segment {index}: these image codes are not this image tokenizer's"
                )
            put([control.boi], index, segment.trainable)
            role: Literal["given", "generated"] = "generated" if segment.trainable else "given"
            slots.append(ImageSlot(len(ids), len(ids) + len(values), index, role))
            put([size + int(code) for code in values], index, segment.trainable)
            put([control.eoi], index, False)
        if prompt_length:
            put([control.eos], len(document.segments), True)
        else:
            put([control.answer], -1, False)
            prompt_length = len(ids)
        return TokenSequence(
            torch.tensor(ids), torch.tensor(segments), torch.tensor(trainable), prompt_length, tuple(slots)
        )

    def read(self, ids_C: Sequence[int]) -> Reading:
        """The document that a completion's joint ids say; the sampler's, so they obey the grammar up to a cut."""
        control, vocabulary = self.vocabulary.controls, self.vocabulary
        ids = [int(i) for i in ids_C]
        parts: list[Segment] = []
        owner: list[int] = []
        text: list[int] = []
        ended, cut, at = False, False, 0

        def close_text() -> None:
            if text:
                words = cast(str, self.tokenizer.decode(text, skip_special_tokens=False))
                parts.append(TextSegment(words, trainable=True))
                text.clear()

        while at < len(ids):
            if ids[at] == control.boi:
                close_text()
                codes = ids[at + 1 : at + 1 + vocabulary.image_length]
                taken = ids[at : at + 2 + vocabulary.image_length]
                owner.extend([len(parts)] * len(taken))
                if len(codes) < vocabulary.image_length:
                    cut = True
                else:
                    values = np.array(codes, dtype=np.int64) - vocabulary.text_size
                    parts.append(ImageSegment(None, trainable=True, origin="generated", codes_N=values))
                at += len(taken)
            elif ids[at] == control.eos:
                close_text()
                owner.append(len(parts))
                ended, at = True, len(ids)
            else:
                text.append(ids[at])
                owner.append(len(parts))
                at += 1
        close_text()
        return Reading(InterleavedDocument(tuple(parts)), torch.tensor(owner, dtype=torch.long), ended, cut)

    def join(self, prompt: TokenSequence, ids_C: Tensor, reading: Reading) -> TokenSequence:
        """A prompt and its sampled completion as one sequence: `segment_T` counts the completion's own segments."""
        forced = ids_C == self.vocabulary.controls.eoi
        return TokenSequence(
            torch.cat([prompt.ids_T, ids_C]),
            torch.cat([torch.full_like(prompt.segment_T, -1), reading.segment_C]),
            torch.cat([torch.zeros_like(prompt.trainable_T), ~forced]),
            len(prompt),
        )

    def paint(self, documents: Sequence[InterleavedDocument]) -> list[InterleavedDocument]:
        """Decodes the codes of all pictures that have no pixels yet, in one batch."""
        todo = [image for document in documents for image in document.images if image.image is None]
        pictures = iter(self.image_tokenizer.decode(np.stack([image.codes_N for image in todo])) if todo else ())  # type: ignore[arg-type]

        def painted(segment: Segment) -> Segment:
            if isinstance(segment, ImageSegment) and segment.image is None:
                return replace(segment, image=next(pictures))
            return segment

        return [replace(document, segments=tuple(map(painted, document.segments))) for document in documents]
