"""Turns of a conversation to the one prompt that models of ours know, and the settings of an answer."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from ...configs.errors import InputError
from ...models.documents.candidates import escape_markers, offer
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ...models.sampler.request import Sampling
from ...models.writing import changed
from .fields import Fault, Fields, wrong
from .pictures import LINK, Pictures

BETWEEN_TURNS = "\n\n"
MOST_STOPS, LONGEST_STOP = 16, 256


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request, whatever its form."""

    prompt: InterleavedDocument
    sampling: Sampling
    stop: tuple[str, ...]
    model: str
    stream: bool
    log_probs: bool = False
    question: str = ""
    """The words of the last turn: what an index is asked."""


@dataclass(frozen=True, slots=True)
class Given:
    """Limits and defaults that a request is read with."""

    sampling: Sampling
    """Where the request says nothing."""
    max_tokens: int = 4096
    max_images: int = 16


class Conversation:
    """Collects turns: texts, pictures, and candidates by number."""

    def __init__(self, pictures: Pictures):
        self.pictures = pictures
        self.segments: list[Segment] = []
        self.candidates: dict[int, tuple[Image.Image, str]] = {}
        self._begins = False
        self._speaker = ""
        self.last_words = ""
        """Texts of the last turn."""

    def speaks(self, role: str) -> None:
        """Another turn begins, and a blank line stands between the words of two; the items of one answer are one."""
        if role != "assistant" or self._speaker != role:
            self._begins, self.last_words = bool(self.segments), ""
        self._speaker = role

    def text(self, text: str) -> None:
        self.last_words += text
        last = self.segments[-1] if self.segments else None
        if self._begins:
            self._begins = False
            if isinstance(last, TextSegment):
                self.segments[-1] = TextSegment(last.text + BETWEEN_TURNS + text)
                return
            text = BETWEEN_TURNS + text
        self.segments.append(TextSegment(text))

    def own_words(self, text: str) -> None:
        """What an answer said before; links to our pictures are the pictures again, as long as they are kept."""
        at = 0
        for link in LINK.finditer(text):
            if data := self.pictures.linked(link[1]):
                if before := text[at : link.start()].strip("\n"):
                    self.text(before)
                self.picture(self.pictures.of_bytes(data, "messages"))
                at = link.end()
        if rest := (text[at:].lstrip("\n") if at else text):
            self.text(rest)

    def picture(self, image: Image.Image, caption: str = "") -> None:
        self._begins = False
        self.segments.append(ImageSegment(image, alt=caption))

    def candidate(self, number: int, image: Image.Image, caption: str, param: str) -> None:
        if number in self.candidates:
            raise wrong(param, f"two pictures are candidate {number}")
        self.candidates[number] = image, caption

    def prompt(self) -> InterleavedDocument:
        """Candidates come first, each with its number and caption, as models are trained to see them."""
        said = InterleavedDocument(tuple(self.segments))
        if not said.images and not said.text:
            raise Fault(400, "the prompt is empty: write something to the model", "messages")
        if not self.candidates:
            return said
        numbers = sorted(self.candidates)
        if numbers != list(range(1, len(numbers) + 1)):
            raise Fault(400, f"candidates are numbered 1 to {len(numbers)}, each once", "candidate")
        head = offer("", [self.candidates[number] for number in numbers]).segments[:-1]
        rest = [replace(s, text=escape_markers(s.text)) if isinstance(s, TextSegment) else s for s in said.segments]
        if isinstance(rest[0], TextSegment):
            rest[0] = TextSegment("\n" + rest[0].text)
        else:
            rest.insert(0, TextSegment("\n"))
        return InterleavedDocument((*head, *rest))


def part_picture(fields: Fields, url: str, conversation: Conversation, param: str) -> None:
    """A picture part: one that is shown to the model, or with a number a candidate for the answer."""
    number, caption = fields.take("candidate", int), fields.take("caption", str, "")
    if number is not None and not 1 <= number <= conversation.pictures.most:
        raise wrong(fields.name("candidate"), f"1 to {conversation.pictures.most}")
    image = conversation.pictures.of_url(url, param)
    if number is None:
        conversation.picture(image, caption)
    else:
        conversation.candidate(number, image, caption, fields.name("candidate"))


def settings(fields: Fields, given: Given, tokens: Sequence[str]) -> Sampling:
    """temperature, top_p, top_k, seed, guidance, max_images, and the limit of tokens by whichever name it has.

    What asks for more than the server gives is cut to it. Without a seed an answer has one of its own.
    """
    changes: dict[str, Any] = {"seed": secrets.randbits(53)}
    names = {"temperature": (int, float), "top_p": (int, float), "guidance": (int, float)}
    names |= dict.fromkeys(("top_k", "seed", "max_images"), int)
    for name, kinds in names.items():
        if (value := fields.take(name, kinds)) is not None:
            changes[name] = value
    for name in tokens:
        if (value := fields.take(name, int)) is not None:
            changes["max_new_tokens"] = value
    sampling = given.sampling
    for name, value in changes.items():
        try:
            sampling = changed(sampling, {name: value})
        except InputError as error:
            param = tokens[0] if name == "max_new_tokens" else name
            raise wrong(param, str(error).rpartition(": ")[2]) from None
    images = given.max_images if sampling.max_images is None else min(sampling.max_images, given.max_images)
    return replace(sampling, max_new_tokens=min(sampling.max_new_tokens, given.max_tokens), max_images=images)


def stops(fields: Fields) -> tuple[str, ...]:
    value = fields.take("stop", (str, list), [])
    words = [value] if isinstance(value, str) else value
    if not all(isinstance(word, str) and 0 < len(word) <= LONGEST_STOP for word in words) or len(words) > MOST_STOPS:
        raise wrong("stop", f"a text or up to {MOST_STOPS} of them, each of 1 to {LONGEST_STOP} letters")
    return tuple(words)
