"""Prompts to illustrated answers: the processor, the sampler and the image tokenizer in a row.

model = Model(policy)                                       # or limner.load("ORG/NAME")
answer = model.write("How do I fold a crane?")
answer.save("crane.html")
model.log_probs(answer).segments                            # how likely the model finds each of its segments
for part in model.stream("How do I fold a crane?"):         # text as it comes, each picture when it is done
    ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, cast, overload

import torch
from PIL import Image
from torch import Tensor

from ..configs.errors import InputError
from ..configs.schema import Place, convert, fields_of, unknown_key
from .documents.document import ImageSegment, InterleavedDocument
from .documents.forms import Part, Picture, Prompt, kind_of, read_answer, read_prompt
from .documents.rendering import save
from .log_probs import LogProbs, log_probs
from .policy import UnifiedPolicy
from .sampler.generation import Sampling, generate, stream
from .tokens.pieces import read
from .tokens.reader import BEGUN, Reader, offered, painted
from .tokens.sequence import TokenSequence

BATCH = 16
"""Answers that are drawn together."""
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


@dataclass(frozen=True, slots=True)
class Answer:
    document: InterleavedDocument
    """The completion, its pictures painted."""
    ended: bool
    """False where the length limit came before the model's end, or a stop string."""
    cut_image: bool
    """True where the limit fell inside a picture, which is left out."""
    prompt: InterleavedDocument = InterleavedDocument(())
    faults: Counter[str] = field(default_factory=Counter)
    """Markers that place no candidate, by kind (`candidates.cut_at_markers`); they stand in the text."""
    ids_C: Tensor | None = field(default=None, compare=False, repr=False)
    """Joint ids as they were drawn, int64 [C], up to the one that completes a stop string."""
    sampling: Sampling | None = None
    """The settings it was drawn with."""

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
        if not isinstance(path, str | Path):
            raise InputError(f"save: name a file that ends in .html, .md or .json, not {kind_of(path)}")
        save(self.prompt + self.document, Path(path))


@dataclass(frozen=True, slots=True)
class About:
    """What a checkpoint says of itself to those who ask it something; its author wrote it."""

    knows: str = ""
    """What it was trained to write about, in a sentence."""
    examples: tuple[str, ...] = ()
    """Prompts that it can answer."""


SILENT = About()
"""Of most checkpoints."""


class Model:
    """A model that answers prompts in text and pictures.

    A prompt is a text, a document, a list of texts and pictures (PIL, or the `Path` of one) in order, or the messages
    of a chat: one turn of the user. Keyword arguments beyond those that are named are fields of `Sampling`
    (max_new_tokens, temperature, top_k, top_p, max_images, guidance, seed) that differ from `self.sampling`, the
    model's own.

    `stop`: texts at the first of which an answer ends, itself left out. They are looked for within a text, not across
    pictures. A stream, and `write` of one answer, end there; of several answers each is drawn to its end and then cut.

    Every method raises InputError for what is no prompt, a picture that does not open, and a setting that does not
    exist or is out of range.
    """

    def __init__(self, policy: UnifiedPolicy, about: About = SILENT):
        self.policy, self.about = policy, about
        self.sampling = default_sampling(policy)

    @overload
    def write(
        self, prompt: Prompt, pictures: Sequence[Picture] = (), *, stop: str | Sequence[str] = (), **changes: Any
    ) -> Answer: ...
    @overload
    def write(
        self,
        prompt: Prompt,
        pictures: Sequence[Picture] = (),
        *,
        n: int,
        stop: str | Sequence[str] = (),
        **changes: Any,
    ) -> list[Answer]: ...
    def write(self, prompt, pictures=(), *, n=None, stop=(), **changes):
        """One answer; with `n`, a list of n different ones, the first of which is the one that comes without `n`.

        pictures: those before a prompt that is a text.
        """
        if n is None and _stops(stop):
            return _drained(self.stream(prompt, pictures, stop=stop, **changes))
        asked = [read_prompt(prompt, pictures)] * _count("n", 1 if n is None else n)
        answers = write(self.policy, asked, self._sampling(changes), BATCH, stop=_stops(stop))
        return answers[0] if n is None else answers

    @overload
    def write_many(
        self, prompts: Iterable[Prompt], batch_size: int = ..., *, stop: str | Sequence[str] = (), **changes: Any
    ) -> list[Answer]: ...
    @overload
    def write_many(
        self,
        prompts: Iterable[Prompt],
        batch_size: int = ...,
        *,
        n: int,
        stop: str | Sequence[str] = (),
        **changes: Any,
    ) -> list[list[Answer]]: ...
    def write_many(self, prompts, batch_size=BATCH, *, n=None, stop=(), **changes):
        """One answer a prompt, or with `n` a list of n a prompt; they do not depend on the batch size, in answers."""
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise InputError(f"write_many: give a list of prompts, not {kind_of(prompts)}; `write` takes one prompt")
        each = _count("n", 1 if n is None else n)
        asked = [document for prompt in prompts for document in [read_prompt(prompt)] * each]
        size = _count("batch_size", batch_size)
        answers = write(self.policy, asked, self._sampling(changes), size, stop=_stops(stop))
        return answers if n is None else [answers[start : start + n] for start in range(0, len(answers), n)]

    def stream(
        self, prompt: Prompt, pictures: Sequence[Picture] = (), *, stop: str | Sequence[str] = (), **changes: Any
    ) -> Generator[str | ImageSegment, None, Answer]:
        """Pieces of text as they come, and each picture, as its `.image`, once its last code is drawn.

        A piece never ends inside a character. Together they are what `write` gives for the same seed; the generator
        returns that answer.
        """
        return _stream(self.policy, read_prompt(prompt, pictures), self._sampling(changes), _stops(stop))

    def log_probs(
        self,
        prompt: Answer | Prompt,
        answer: InterleavedDocument | Part | Iterable[Part] | None = None,
        *,
        temperature: float | None = None,
        guidance: float | None = None,
    ) -> LogProbs:
        """Log-probs of the tokens of an answer: `log_probs(written)`, or `log_probs(prompt, document)`.

        Of an `Answer` that this model wrote they are those that it was drawn with: at its temperature, guidance and
        limit of pictures. Truncation (top_k, top_p) does not count, and a greedy answer is scored at temperature 1. Of
        a given one, which ends with `<eos>`, they are those at temperature 1 without guidance. One document that holds
        prompt and answer will do as well. Raises InputError for what is no answer.
        """
        if isinstance(prompt, Answer) and answer is None and prompt.sampling is not None:
            settings, written, first, sequence = prompt.sampling, prompt.document, 0, self.encode(prompt)
        else:
            if answer is None and not (isinstance(prompt, InterleavedDocument) and prompt.completion.segments):
                raise InputError("log_probs: no answer; give one behind the prompt, or a document that holds both")
            asked = read_prompt(cast(Any, prompt))
            written = read_answer(cast(Any, prompt) if answer is None else answer)
            settings, first, sequence = Sampling(), len(asked.segments), self.encode(asked + written)
        given = {"temperature": temperature, "guidance": guidance}
        settings = changed(settings, {name: value for name, value in given.items() if value is not None})
        return log_probs(
            self.policy, sequence, written, first, settings.temperature or 1.0, settings.guidance, settings.max_images
        )

    def encode(self, answer: Answer | InterleavedDocument) -> TokenSequence:
        """An answer with its prompt, or a document, as what a loss takes: rows of `collate`.

        Of an answer that a model wrote these are the very tokens that were drawn. Raises InputError for anything else.
        """
        processor = self.policy.processor
        if isinstance(answer, InterleavedDocument):
            return processor.encode(answer)
        if not isinstance(answer, Answer) or answer.ids_C is None or answer.sampling is None:
            raise InputError(f"encode: give an answer that a model has written, or a document, not {kind_of(answer)}")
        reading = processor.read(answer.ids_C.tolist(), answer.prompt.candidates)
        sequence = processor.join(processor.encode(answer.prompt), answer.ids_C, reading)
        if answer.sampling.begin_with_image:
            sequence.trainable_T[sequence.prompt_length] = False
        return sequence

    def _sampling(self, changes: dict[str, Any]) -> Sampling:
        return changed(self.sampling, changes)


def write(
    policy: UnifiedPolicy,
    prompts: Sequence[InterleavedDocument],
    sampling: Sampling,
    batch_size: int = 128,
    rows: Sequence[int] | None = None,
    stop: Sequence[str] = (),
) -> list[Answer]:
    """One answer a prompt; `rows` as for `generate`. A document that holds an answer already gives its prompt alone.

    An answer ends where the model's positions do, as at the limit of tokens; InputError for a prompt that leaves none.
    Neighbours that are the same object share their prefill.
    """
    processor, numbers = policy.processor, range(len(prompts)) if rows is None else rows
    answers: list[Answer] = []
    for start in range(0, len(prompts), batch_size):
        groups = [list(same) for _, same in groupby(prompts[start : start + batch_size], key=id)]
        asked = [group[0].prompt for group in groups]
        sizes = [len(group) for group in groups]
        encoded = processor.encode_all(asked)
        samples = generate(policy, encoded, sampling, sizes, numbers[start : start + batch_size])
        each = [prompt for prompt, size in zip(asked, sizes, strict=True) for _ in range(size)]
        rooms = [policy.longest - len(tokens) for tokens, size in zip(encoded, sizes, strict=True) for _ in range(size)]
        readings = [
            read(processor, sample.ids_C[:room].tolist(), prompt.candidates, stop)
            for prompt, sample, room in zip(each, samples, rooms, strict=True)
        ]
        documents = processor.paint([reading.document for reading in readings])
        for prompt, document, sample, reading in zip(each, documents, samples, readings, strict=True):
            ids_C = sample.ids_C[: len(reading.segment_C)]
            answers.append(Answer(document, reading.ended, reading.cut_image, prompt, reading.faults, ids_C, sampling))
    return answers


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
    policy: UnifiedPolicy, prompt: InterleavedDocument, sampling: Sampling, stop: Sequence[str]
) -> Generator[str | ImageSegment, None, Answer]:
    reader, encoded = Reader(policy.processor, offered(policy.processor, prompt), stop), policy.processor.encode(prompt)
    pictures: list[ImageSegment] = []
    drawn = islice(stream(policy, encoded, sampling), max(policy.longest - len(encoded), 1))
    for token in chain(drawn, [None]):
        for part in reader.take(token):
            if part is not BEGUN:
                if isinstance(part, ImageSegment) and part.image is None:
                    part = painted(policy.processor, part)
                    pictures.append(part)
                yield cast(Any, part)
        if reader.stopped:
            break
    return answer_of(reader, prompt, sampling, pictures)


def answer_of(
    reader: Reader, prompt: InterleavedDocument, sampling: Sampling, pictures: Iterable[ImageSegment]
) -> Answer:
    """What a reader has read, with the drawn pictures as they were painted on the way, in order."""
    reading, done = reader.reading(), iter(pictures)
    segments = [
        next(done) if isinstance(segment, ImageSegment) and segment.origin == "generated" else segment
        for segment in reading.document.segments
    ]
    document, ids_C = InterleavedDocument(tuple(segments)), torch.tensor(reader.ids[: len(reading.segment_C)])
    return Answer(document, reading.ended, reading.cut_image, prompt, reading.faults, ids_C, sampling)


def _drained(running: Generator[Any, None, Answer]) -> Answer:
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def changed(sampling: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Raises InputError naming a setting that does not exist, is of another type or out of range."""
    kinds = fields_of(Sampling)
    for name in changes:
        if name not in kinds:
            raise unknown_key(name, kinds, f"sampling: {name}")
    values = {name: convert(value, kinds[name], Place("sampling", (name,))) for name, value in changes.items()}
    return replace(sampling, **values)


def _stops(stop: Any) -> tuple[str, ...]:
    words = (stop,) if isinstance(stop, str) else stop
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) and word for word in words):
        raise InputError(f"stop: a text or a list of texts, none of them empty, not {stop!r}")
    return tuple(words)


def _count(name: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise InputError(f"{name}: a whole number from 1 on, not {value!r}")
    return value
