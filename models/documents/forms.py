"""The forms in which people bring a document: texts and pictures in order, or the messages of a chat.

document("What is this?", Image.open("a.png"))                   # a prompt
document("Draw a red circle.", answer=["Here it is.", Path("a.png")])    # a prompt with the answer to learn
read_prompt([{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "And this?"}]}])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ...configs.errors import InputError, reading
from .document import IMAGE_FORMATS, ImageSegment, InterleavedDocument, Segment, TextSegment, read_image

Picture = str | Path | Image.Image
"""A file, or pixels."""
Part = str | Path | Image.Image | Segment
"""Of a document; here a string is a text, and a file is a `Path`."""
Prompt = str | InterleavedDocument | Sequence[Part] | Sequence[Mapping[str, Any]]
"""A text, a document, texts and pictures in order, or the messages of a chat."""

FILE_NAMES = tuple(f".{name.lower()}" for name in (*IMAGE_FORMATS, "JPG"))


def document(
    *parts: Part, answer: Part | Iterable[Part] = (), id: str = "", meta: dict[str, Any] | None = None
) -> InterleavedDocument:
    """A document of texts and pictures in order; with an `answer`, the part that a model is to learn.

    A part is a text, a picture (PIL), the `Path` of one, or a segment, which stays as it is. `meta` is what rewards and
    shards may ask for (JSON values). Raises InputError naming a part that is none of these or does not open.
    """
    if not isinstance(id, str) or not isinstance(meta or {}, dict):
        raise InputError(f"document: id is a text and meta a dict, not {kind_of(id)} and {kind_of(meta)}")
    answers = [answer] if isinstance(answer, str | Path | Image.Image | Segment) else answer
    if not isinstance(answers, Iterable) or isinstance(answers, Mapping):
        raise InputError(f"document: the answer is {kind_of(answer)}; give a part, or a list of them")
    given = [_segment(part, f"part {number}") for number, part in enumerate(parts, 1)]
    learnt = [_segment(part, f"part {number} of the answer", True) for number, part in enumerate(answers, 1)]
    return InterleavedDocument((*given, *learnt), id, meta or {})


def read_prompt(prompt: Prompt, pictures: Sequence[Picture] = ()) -> InterleavedDocument:
    """A prompt as a document; one that holds an answer already gives its prompt alone.

    pictures: those before a prompt that is a text. Raises InputError for an empty prompt, for what is none, for a
    picture that does not open, and for turns of a chat that a template has no place for.
    """
    if isinstance(prompt, str):
        return make_prompt(prompt, pictures)
    if isinstance(prompt, InterleavedDocument):
        asked = prompt.prompt
    elif isinstance(prompt, Sequence) and any(isinstance(part, Mapping) for part in prompt):
        asked = InterleavedDocument(tuple(_of_messages(prompt)))
    elif isinstance(prompt, list | tuple):
        asked = document(*cast(Sequence[Part], prompt))
        _refuse_empty(asked)
    else:
        forms = "a text, a document, a list of texts and pictures, or the messages of a chat"
        raise InputError(f"a prompt is {forms}, not {kind_of(prompt)}")
    if pictures:
        raise InputError("the prompt is a document already; put the pictures into it")
    return asked


def read_answer(answer: InterleavedDocument | Part | Iterable[Part]) -> InterleavedDocument:
    """An answer as a document, its prompt left out: all of it trainable, unless it says itself what is."""
    if not isinstance(answer, InterleavedDocument):
        return document(answer=answer)
    if answer.completion.segments:
        return answer.completion
    return replace(answer, segments=tuple(replace(segment, trainable=True) for segment in answer.segments))


def make_prompt(text: str, pictures: Sequence[Picture] = ()) -> InterleavedDocument:
    """A prompt of pictures and a text. Raises InputError naming a picture that does not open or decode."""
    if isinstance(pictures, str | Path | Image.Image) or not isinstance(pictures, Sequence):
        raise InputError(f"pictures: a list of files or PIL images, not {kind_of(pictures)}; one picture is [picture]")
    given = [_picture(picture, f"picture {number}") for number, picture in enumerate(pictures, 1)]
    asked = InterleavedDocument((*given, TextSegment(text)))
    if not text.strip():
        raise InputError("the prompt is empty")
    return asked


def _of_messages(messages: Sequence[Any]) -> Iterator[Segment]:
    """Of one turn of a user. A model's template says what stands around one prompt, and knows no other turns."""
    for number, message in enumerate(messages, 1):
        place = f"message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise InputError(f'{place}: expected {{"role": "user", "content": ...}}, got {kind_of(message)}')
        if message["role"] != "user":
            raise InputError(
                f"{place}: the models' templates have no place for a turn of role {message['role']!r}; put its words "
                "into the user's turn"
            )
        if number > 1:
            raise InputError(f"{place}: the models' templates have one turn of the user; put both into one message")
    turn = [message["content"] for message in messages]
    parts = [{"type": "text", "text": turn[0]}] if isinstance(turn[0], str) else turn[0]
    if not isinstance(parts, list | tuple):
        raise InputError(f"message 1: its content is a text or a list of parts, not {kind_of(parts)}")
    segments = [_of_part(part, f"message 1, part {number}") for number, part in enumerate(parts, 1)]
    _refuse_empty(InterleavedDocument(tuple(segments)))
    yield from segments


def _of_part(part: Any, place: str) -> Segment:
    match part:
        case {"type": "text", "text": str(text)}:
            return TextSegment(text)
        case {"type": "image", "image": picture}:
            return _picture(picture, place)
    shown = sorted(map(str, part)) if isinstance(part, Mapping) else kind_of(part)
    raise InputError(
        f'{place}: expected {{"type": "text", "text": ...}} or {{"type": "image", "image": ...}}, got {shown}'
    )


def _refuse_empty(asked: InterleavedDocument) -> None:
    if not asked.images and not asked.text:
        raise InputError("the prompt is empty")


def _segment(part: Any, place: str, learnt: bool = False) -> Segment:
    if isinstance(part, Segment):
        return part
    if isinstance(part, str):
        if part.lower().endswith(FILE_NAMES) and len(part) < 256 and Path(part).is_file():
            raise InputError(
                f"{place}: {part!r} is a text here, and there is a picture of that name; give Path({part!r})"
            )
        return TextSegment(part, learnt)
    if isinstance(part, Path | Image.Image):
        return _picture(part, place, learnt)
    raise InputError(f"{place}: {kind_of(part)} is neither a text, nor a picture (PIL), nor the Path of one")


def _picture(picture: Any, place: str, learnt: bool = False) -> ImageSegment:
    if not isinstance(picture, str | Path | Image.Image):
        raise InputError(f"{place}: {kind_of(picture)} is neither a picture (PIL) nor the file of one")
    with reading(Path(place) if isinstance(picture, Image.Image) else Path(picture)):
        image = picture if isinstance(picture, Image.Image) else read_image(Path(picture))
        segment = ImageSegment(image, learnt, "generated" if learnt else "given")
        segment.pixels()
    return segment


def kind_of(value: object) -> str:
    """A value's type for a sentence: `a dict`, `an int`, `None`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"
