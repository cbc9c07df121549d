"""Drawn ids to what they say, as they come: text, inserted pictures, and drawn ones that are still to be painted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from ..documents.candidates import cut_at_markers
from ..documents.document import ImageSegment, InterleavedDocument, TextSegment
from .pieces import REPLACEMENT, between, length, read, sure, until
from .processing import Processor, Reading

BLOCK, OVERLAP = 64, 16
"""Ids after which a text's beginning is left alone, and those of it that are decoded with what follows."""
BEGUN: Final = object()
"""In place of a part: a picture is being drawn."""


class Reader:
    """Reads one answer. A piece of text never ends inside a character, a marker or a stop string that has begun.

    candidates: those that the prompt offers, with pixels (`offered`).
    """

    def __init__(self, processor: Processor, candidates: Mapping[int, ImageSegment], stop: Sequence[str] = ()):
        self.processor, self.candidates, self.stop = processor, candidates, stop
        self.ids: list[int] = []
        """All that were taken."""
        self.stopped = False
        """A stop string has come: no further id belongs to the answer."""
        vocabulary = processor.vocabulary
        self._painted, self._closed = vocabulary.last_code + 2, len(vocabulary.image) + 1
        """Tokens of a picture, `<boi>` among them."""
        self._placed: set[int] = set()
        self._text = Words(processor)
        self._picture: list[int] = []
        """Tokens of the text that is being written, and of the picture."""
        self._said = 0

    def take(self, token: int | None) -> Iterator[str | ImageSegment | Any]:
        """What is known through the next id: pieces, inserted pictures, `BEGUN`, and drawn pictures as codes.

        None says that no more comes.
        """
        control = self.processor.vocabulary.controls
        if token is not None:
            self.ids.append(token)
        if self._picture and token is not None:
            self._picture.append(token)
            if len(self._picture) == self._painted:
                yield self.processor.read(self._picture).document.images[0]
            if len(self._picture) == self._closed:
                self._picture = []
        elif token in (control.boi, control.eos, None):
            yield from self._say(last=True)
            self._text, self._said = Words(self.processor), 0
            if token == control.boi and not self.stopped:
                self._picture = [control.boi]
                yield BEGUN
        else:
            self._text.ids.append(cast(int, token))
            yield from self._say()

    def take_all(self, tokens: Sequence[int | None]) -> Iterator[str | ImageSegment | Any]:
        """The same of several ids, up to the one that completes a stop string. Without those a text is read once."""
        control = self.processor.vocabulary.controls
        for number, token in enumerate(tokens, 1):
            if self.stopped:
                return
            if self.stop or self._picture or number == len(tokens) or token in (control.boi, control.eos, None):
                yield from self.take(token)
            else:
                self.ids.append(cast(int, token))
                self._text.ids.append(cast(int, token))

    def _say(self, last: bool = False) -> Iterator[str | ImageSegment]:
        if not self._text.ids:
            return
        if last:
            read_here = self.processor.read_text(self._text.ids, self.candidates, self._placed, Counter())
            written = [segment for segment, _ in read_here]
        else:
            words = self._text.so_far()
            parts = cut_at_markers(words, self.candidates, {*self._placed}, Counter())
            written = [
                TextSegment(words[start:end]) if number is None else self.candidates[number]
                for start, end, number in parts
            ]
        sure_of = sum(map(length, written)) if last else sure(written, bool(self.candidates))
        known, self.stopped = until(written, sure_of, self.stop, held=not last)
        yield from between(written, self._said, known)
        self._said = max(self._said, known)

    def reading(self) -> Reading:
        """All that was taken, up to a stop string."""
        return read(self.processor, self.ids, self.candidates, self.stop)


class Words:
    """What the ids of a text say so far. Only the last ones are decoded anew with each id: a long text would else cost
    the square of its length. What a decoder makes of an id depends on those before it, so some are decoded with it."""

    def __init__(self, processor: Processor):
        self.ids: list[int] = []
        self._decode = processor.tokenizer.decode
        self._head, self._from, self._skip = "", 0, 0
        """A text that no later id changes; the first id that is decoded anew, and its characters that the head has."""
        self._cut = 0

    def so_far(self) -> str:
        words = self._head + self._of(self._from)[self._skip :]
        if len(self.ids) - self._cut >= BLOCK and not words.endswith(REPLACEMENT):
            start = len(self.ids) - OVERLAP
            again = self._of(start)
            if words.endswith(again.lstrip()):
                self._head, self._from, self._skip, self._cut = words, start, len(again), len(self.ids)
        return words

    def _of(self, start: int) -> str:
        return cast(str, self._decode(self.ids[start:], skip_special_tokens=False))


def offered(processor: Processor, prompt: InterleavedDocument) -> dict[int, ImageSegment]:
    """The candidates of a prompt by number, those with codes alone painted."""
    (document,) = processor.paint([InterleavedDocument(tuple(prompt.candidates.values()))])
    return {cast(int, image.candidate): image for image in document.images}


def painted(processor: Processor, picture: ImageSegment) -> ImageSegment:
    (document,) = processor.paint([InterleavedDocument((picture,))])
    return document.images[0]
