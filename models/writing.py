"""Prompts to illustrated answers: the processor, the sampler and the image tokenizer in a row.

model = Model(policy)                                       # or limner.load("ORG/NAME")
model.write("How do I fold a crane?").save("crane.html")
for part in model.stream("How do I fold a crane?"):         # text as it comes, each picture when it is done
    ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

from PIL import Image

from ..configs.errors import InputError, reading
from .documents.candidates import BEGUN, marker
from .documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment, open_image
from .documents.rendering import save
from .policy import UnifiedPolicy
from .sampler.generation import Sampling, generate, stream

Prompt = str | InterleavedDocument
Picture = str | Path | Image.Image
"""A file, or pixels."""

DEFAULTS = Sampling(max_new_tokens=512, max_images=8)
"""Of a model whose generation settings say nothing."""
SAYS = {
    "max_new_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "guidance": "guidance_scale",
}
"""Our settings by the names of transformers' GenerationConfig; `max_images`, which it lacks, stands there as well."""
REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no UTF-8, those of an unfinished character among them."""


@dataclass(frozen=True, slots=True)
class Answer:
    document: InterleavedDocument
    """The completion, its pictures painted."""
    ended: bool
    """False where the length limit came first."""
    cut_image: bool
    """True where the limit fell inside a picture, which is left out."""
    prompt: InterleavedDocument = InterleavedDocument(())
    faults: Counter[str] = field(default_factory=Counter)
    """Markers that place no candidate, by kind (`candidates.cut_at_markers`); they stand in the text."""

    @property
    def text(self) -> str:
        return self.document.text

    @property
    def images(self) -> list[Image.Image]:
        return [image.pixels() for image in self.document.images]

    def save(self, path: str | Path) -> None:
        """Prompt and answer as .html (pictures inline), .md (pictures in a folder beside it) or .json.

        Raises InputError for another name.
        """
        save(self.prompt + self.document, Path(path))


class Model:
    """A model that answers prompts in text and pictures.

    A prompt is a text, with pictures before it, or a whole document. Keyword arguments beyond that are fields of
    `Sampling` (max_new_tokens, temperature, top_k, top_p, max_images, guidance, seed) that differ from `self.sampling`,
    the model's own.
    """

    def __init__(self, policy: UnifiedPolicy):
        self.policy = policy
        self.sampling = default_sampling(policy)

    def write(self, prompt: Prompt, pictures: Sequence[Picture] = (), **changes: Any) -> Answer:
        """Raises InputError for an empty prompt, a picture that does not open, and a setting that does not exist."""
        (answer,) = self.write_many([_document(prompt, pictures)], **changes)
        return answer

    def write_many(self, prompts: Iterable[Prompt], batch_size: int = 16, **changes: Any) -> list[Answer]:
        """One answer a prompt; it does not depend on the batch size."""
        return write(self.policy, [_document(prompt) for prompt in prompts], self._sampling(changes), batch_size)

    def stream(
        self, prompt: Prompt, pictures: Sequence[Picture] = (), **changes: Any
    ) -> Generator[str | ImageSegment, None, Answer]:
        """Pieces of text as they come, and each picture, as its `.image`, once its last code is drawn.

        A piece never ends inside a character. Together they are what `write` gives for the same seed; the generator
        returns that answer.
        """
        return _stream(self.policy, _document(prompt, pictures), self._sampling(changes))

    def _sampling(self, changes: dict[str, Any]) -> Sampling:
        known = [field.name for field in fields(Sampling)]
        if unknown := [name for name in changes if name not in known]:
            raise InputError(f"sampling: {unknown[0]!r} is no setting; known: {', '.join(known)}")
        return replace(self.sampling, **changes)


def write(
    policy: UnifiedPolicy,
    prompts: Sequence[InterleavedDocument],
    sampling: Sampling,
    batch_size: int = 128,
    rows: Sequence[int] | None = None,
) -> list[Answer]:
    """One answer a prompt; `rows` as for `generate`. A document that holds an answer already gives its prompt alone."""
    processor, numbers = policy.processor, range(len(prompts)) if rows is None else rows
    answers: list[Answer] = []
    for start in range(0, len(prompts), batch_size):
        asked = [prompt.prompt for prompt in prompts[start : start + batch_size]]
        samples = generate(policy, processor.encode_all(asked), sampling, rows=numbers[start : start + batch_size])
        readings = [
            processor.read(sample.ids_C.tolist(), prompt.candidates)
            for prompt, sample in zip(asked, samples, strict=True)
        ]
        documents = processor.paint([reading.document for reading in readings])
        for prompt, document, read in zip(asked, documents, readings, strict=True):
            answers.append(Answer(document, read.ended, read.cut_image, prompt, read.faults))
    return answers


def make_prompt(text: str, pictures: Sequence[Picture] = ()) -> InterleavedDocument:
    """A prompt of pictures and a text. Raises InputError naming a picture that does not open or decode."""
    if not text.strip():
        raise InputError("the prompt is empty")
    given = [_given(picture, number) for number, picture in enumerate(pictures, 1)]
    return InterleavedDocument((*given, TextSegment(text)))


def default_sampling(policy: UnifiedPolicy) -> Sampling:
    """What the model's generation settings say; no limit of theirs, and ours where they say nothing."""
    config = cast(Any, policy.model).generation_config
    values = {ours: value for ours, name in SAYS.items() if (value := getattr(config, name, None)) is not None}
    if hasattr(config, "max_images"):
        values["max_images"] = config.max_images
    if config.do_sample is False:
        values["temperature"] = 0.0
    return replace(DEFAULTS, **values)


def set_default_sampling(policy: UnifiedPolicy, sampling: Sampling) -> None:
    """Puts all but the seed into the model's generation settings; `default_sampling` reads it back."""
    config = cast(Any, policy.model).generation_config
    config._from_model_config = False  # a configuration that claims to come from there loses `max_images` when read
    config.do_sample = sampling.temperature > 0
    for ours, name in SAYS.items():
        setattr(config, name, getattr(sampling, ours))
    if not config.do_sample:  # transformers refuses to save a greedy configuration that says how to sample
        config.temperature = config.top_k = config.top_p = None
    if sampling.guidance == 1:  # transformers takes it for guidance of text; 1 is none there, too
        config.guidance_scale = None
    config.max_images = sampling.max_images


def _stream(
    policy: UnifiedPolicy, prompt: InterleavedDocument, sampling: Sampling
) -> Generator[str | ImageSegment, None, Answer]:
    processor, vocabulary, control = policy.processor, policy.vocabulary, policy.vocabulary.controls
    painted, closed = vocabulary.last_code + 2, len(vocabulary.image) + 1  # tokens of a picture, `<boi>` among them
    (offered,) = processor.paint([InterleavedDocument(tuple(prompt.candidates.values()))])
    candidates = {cast(int, image.candidate): image for image in offered.images}
    placed: set[int] = set()
    faults: Counter[str] = Counter()
    segments: list[Segment] = []
    text: list[int] = []  # tokens of the text that is being written, and of the picture
    picture: list[int] = []
    said, ended = 0, False
    for token in chain(stream(policy, processor.encode(prompt), sampling), [None]):
        if picture and token is not None:
            picture.append(token)
            if len(picture) == painted:
                (document,) = processor.paint([processor.read(picture).document])
                segments.append(document.images[0])
                yield document.images[0]
            if len(picture) == closed:
                picture = []
        elif token in (control.boi, control.eos, None):
            written = [segment for segment, _ in processor.read_text(text, candidates, placed, faults)]
            segments += written
            yield from _between(written, said, sum(map(_length, written)))
            text, said = [], 0
            picture = [control.boi] if token == control.boi else picture
            ended = ended or token == control.eos
        else:
            text.append(token)
            written = [segment for segment, _ in processor.read_text(text, candidates, {*placed}, Counter())]
            sure = _sure(written, bool(candidates))
            yield from _between(written, said, sure)
            said = max(said, sure)
    return Answer(InterleavedDocument(tuple(segments)), ended, 0 < len(picture) < painted, prompt, faults)


def _length(segment: Segment) -> int:
    """Characters of a text, or of the marker of an inserted picture."""
    return len(segment.text if isinstance(segment, TextSegment) else marker(cast(int, segment.candidate)))


def _sure(written: Sequence[Segment], markers: bool) -> int:
    """Characters that no later token changes: neither half a character nor what may become a marker."""
    length, last = sum(map(_length, written)), written[-1]
    if not isinstance(last, TextSegment):
        return length
    whole = last.text.rstrip(REPLACEMENT)
    if markers and (begun := BEGUN.search(whole)):
        whole = whole[: begun.start()]
    return length - len(last.text) + len(whole)


def _between(written: Sequence[Segment], said: int, sure: int) -> Iterator[str | ImageSegment]:
    """The pieces of a text from one character to another, and the pictures whose markers are there."""
    at = 0
    for segment in written:
        start, at = at, at + _length(segment)
        if isinstance(segment, TextSegment):
            if piece := segment.text[max(said - start, 0) : max(sure - start, 0)]:
                yield piece
        elif said <= start and at <= sure:
            yield segment


def _document(prompt: Prompt, pictures: Sequence[Picture] = ()) -> InterleavedDocument:
    if isinstance(prompt, str):
        return make_prompt(prompt, pictures)
    if pictures:
        raise InputError("the prompt is a document already; put the pictures into it")
    return prompt.prompt


def _given(picture: Picture, number: int) -> ImageSegment:
    name = f"picture {number}" if isinstance(picture, Image.Image) else str(picture)
    with reading(Path(name)):
        image = picture if isinstance(picture, Image.Image) else open_image(Path(picture).read_bytes())
        segment = ImageSegment(image)
        segment.pixels()
    return segment
