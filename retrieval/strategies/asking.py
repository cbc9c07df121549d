"""Answers that a language model writes from the sources, pictures by marker: `<imgK>` for candidate K.

Asking(model)                  the sources with markers where pictures stand, and a list of captions
Asking(model, pixels=True)     the same with the pictures themselves

A template is a YAML file with a prompt, in it the places {question} {context} {pictures} {wishes}. Those of the package
are named `NAME.vN`: a version is never edited, its successor is a new file.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from ...configs import build, read_yaml
from ...configs.errors import InputError
from ...configs.registry import register
from ...data.insertion.placements import Candidate, compose, read_markers
from ...data.sentences import sentences
from ...models.chat.requests import PLACE, Answer, ChatModel, Failure, Reply, Request, fill
from ...models.documents.candidates import escape_markers
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..answering import Answered, Means, candidates_of, in_reading_order, sources_of
from ..index.corpus import PIC, Chunk, Hit, some
from ..placing import PlacementRules

PLACES = ("question", "context", "pictures", "wishes")
LLM, VLM = "answer_llm", "answer_vlm"
NOTHING = "nothing"


@dataclass
class AnswerTemplate:
    prompt: str
    system: str = ""
    identity: str = field(default="", init=False)
    """Name and hash of the file; part of the key under which a reply is cached."""

    def __post_init__(self) -> None:
        named = PLACE.findall(self.prompt)
        if unknown := [name for name in named if name not in PLACES]:
            raise InputError(f"prompt: no place {{{unknown[0]}}}; there are {', '.join(PLACES)}")
        if "question" not in named:
            raise InputError("prompt: put {question} where the question is to stand")


def load_template(name_or_path: str) -> AnswerTemplate:
    """A file (its name ends in .yaml), or the latest version of a packaged template."""
    packaged = {path.stem: path for path in Path(__file__).with_name("templates").glob("*.yaml")}
    versions = [name for name in packaged if name.rpartition(".v")[0] == name_or_path]
    if name_or_path in packaged:
        path = packaged[name_or_path]
    elif versions:
        path = packaged[max(versions, key=lambda name: int(name.rpartition(".v")[2]))]
    elif name_or_path.endswith(".yaml"):
        path = Path(name_or_path)
    else:
        known = ", ".join(sorted(packaged))
        raise InputError(f"template {name_or_path!r}: neither a YAML file nor one of the package's: {known}")
    template = build(AnswerTemplate, read_yaml(path), str(path))
    template.identity = f"{path.stem}@{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return template


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    request: Request
    candidates: tuple[Candidate, ...]
    hits: tuple[Hit, ...]
    faults: Counter[str]
    told: Counter[str]


@dataclass(frozen=True, slots=True)
class Asking:
    """A model writes the answer with markers. A `Strategy`.

    Many questions at a time: `prepare` each, let the model answer the requests as it can, and `read` the replies.
    """

    model: ChatModel
    rules: PlacementRules = field(default_factory=PlacementRules)
    pixels: bool = False
    """The model sees the pictures, not their captions alone."""
    template: AnswerTemplate | None = None
    """The package's where there is none."""

    def __call__(self, question: str, hits: Sequence[Hit]) -> Answered:
        """Raises InputError where the model does not answer, or where no words tell of any candidate."""
        asked = self.checked(self.prepare(question, hits))
        (reply,) = self.model.complete([asked.request])
        return self.read(asked, reply)

    def prepare(self, question: str, hits: Sequence[Hit]) -> Asked:
        candidates, numbers, faults = candidates_of(hits, decode=self.pixels)
        if self.rules.images == "generated":
            candidates, numbers = (), {}
        told = Counter() if self.pixels else told_of(candidates)
        template = self.template or load_template(VLM if self.pixels else LLM)
        chunks = in_reading_order([hit.chunk for hit in hits])
        places = {
            "question": [TextSegment(escape_markers(question))],
            "context": list(context_of(chunks, numbers, candidates if self.pixels else ())),
            "pictures": [TextSegment(_captions(candidates))],
            "wishes": [TextSegment(wishes_of(self.rules))],
        }
        document = fill(template.prompt, places, nothing="")
        return Asked(Request(document, template.system, template.identity), candidates, tuple(hits), faults, told)

    def checked(self, asked: Asked) -> Asked:
        """Raises InputError where there are pictures, and the model knows nothing of any."""
        if asked.told and not asked.told.keys() - {NOTHING}:
            raise InputError(
                f"{some(len(asked.candidates), 'picture')} found, without a caption and without text around: no words "
                "tell of them; take --strategy vlm, whose model sees them, or write captions"
            )
        return asked

    def read(self, asked: Asked, reply: Answer) -> Answered:
        """Markers by the rule of `data.insertion.read_markers`."""
        text, faults = written(reply)
        marked = read_markers(text, len(asked.candidates))
        document = compose(sentences(marked.text), marked.placements, asked.candidates)
        return self.answered(asked, document, asked.faults + faults + marked.faults)

    def answered(self, asked: Asked, document: InterleavedDocument, faults: Counter[str]) -> Answered:
        sources = sources_of(asked.hits, [hit.chunk.id for hit in asked.hits], document, asked.candidates)
        return Answered(document, asked.candidates, +faults, sources, told=asked.told)


def written(reply: Answer) -> tuple[str, Counter[str]]:
    """What a model wrote, and how it ended; reasoning up to `</think>` is not part of it.

    Raises InputError where there is nothing.
    """
    if isinstance(reply, Failure):
        raise InputError(f"the model gave no answer: {reply.kind}: {reply.reason}")
    text, faults = said(reply)
    if not text:
        raise InputError(f"the model gave no answer: its reply is empty (finish: {reply.finish})")
    return text, faults


def said(reply: Reply) -> tuple[str, Counter[str]]:
    """The text of a reply without its reasoning, and how it ended."""
    faults: Counter[str] = Counter()
    faults["cut at the limit of tokens"] += reply.finish == "length"
    faults["refused"] += reply.finish in ("refusal", "content_filter")
    return reply.text.rpartition("</think>")[2].strip(), faults


def told_of(candidates: Sequence[Candidate]) -> Counter[str]:
    """By what words tell of each candidate: its caption, or the text around its marker."""
    by = ["caption" if one.caption.strip() else "place in the text" if one.context else NOTHING for one in candidates]
    return Counter(by)


def context_of(
    chunks: Sequence[Chunk], numbers: Mapping[str, int], pictures: Sequence[Candidate] = ()
) -> Iterator[Segment]:
    """The chunks for a prompt, a title before each document, markers where its pictures stand.

    numbers: of candidates by picture id; a picture without one leaves nothing. pictures: candidates whose pixels follow
    their marker, the first time. What the documents say is escaped: `<img1>` typed there is no marker.
    """
    shown: set[int] = set()
    titled = None
    for chunk in chunks:
        if chunk.document != titled:
            titled = chunk.document
            yield TextSegment(f"[{escape_markers(chunk.title)}]\n")
        for piece, picture in zip_longest(chunk.text.split(PIC), chunk.pictures):
            yield TextSegment(escape_markers(piece or ""))
            number = numbers.get(picture.id) if picture else None
            if number is None:
                continue
            yield TextSegment(f"<img{number}>")
            if pictures and number not in shown:
                shown.add(number)
                yield ImageSegment(pictures[number - 1].image, alt=pictures[number - 1].caption)
        yield TextSegment("\n\n")


def wishes_of(rules: PlacementRules) -> str:
    wishes = []
    if rules.max_images is not None:
        wishes.append(f"Use at most {some(rules.max_images, 'picture')}.")
    if rules.sections:
        names = "; ".join(f"## {escape_markers(name)}" for name in rules.sections)
        wishes.append(f"Write the answer in sections, and use pictures only under these headings: {names}.")
    return " ".join(wishes)


def _captions(candidates: Sequence[Candidate]) -> str:
    lines = [
        f"<img{number}>: {escape_markers(' '.join(candidate.caption.split())) or '(no caption)'}"
        for number, candidate in enumerate(candidates, 1)
    ]
    return "\n".join(lines) or "(none)"


@register("strategy", "llm")
class Captions(Asking):
    """A language model writes from the sources; of the pictures it reads the captions and where they stood."""

    needs = ("endpoint", "local")

    def __init__(self, means: Means):
        super().__init__(means.chat(), means.rules, template=template_of(means))


@register("strategy", "vlm")
class Seeing(Asking):
    """A vision-language model writes from the sources and their pictures."""

    needs = ("endpoint", "local")

    def __init__(self, means: Means):
        model = means.chat()
        if not getattr(model, "sees", True):  # of a server one cannot know
            raise InputError("local: the model reads no pictures; --strategy llm tells it of them by their captions")
        super().__init__(model, means.rules, True, template_of(means))


def template_of(means: Means) -> AnswerTemplate | None:
    return load_template(means.template) if means.template else None
