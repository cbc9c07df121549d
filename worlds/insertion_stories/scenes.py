"""The embedded world with candidates: insert the picture that fits, draw where none does, leave where none is wanted.

    Candidate 1: [picture] Candidate 2: [picture]
    Illustrate: a) small red circle top left; b) big blue square top right; c) big red circle top left (no picture).
    -> a) A small red circle at the top left. (1) big (2) small red circle top left <img2>
       b) A big blue square at the top right. (1) big red (2) small [picture]
       c) A big red circle at the top left.

Candidates have no captions: which one fits, if any, is in its pixels alone. They are pictures of some of the steps,
and near misses, which differ from a step in one attribute. Before it chooses, the answer looks at one candidate after
another, word by word, up to the first that differs: reading a picture and comparing two words is learnt soon, finding
the picture of a sentence is not. Warm-up stories are noisy as those of `picture_stories`, and place wrongly as well;
questions about candidates are clean. The biased part of the noise moves the mode: a near miss in size
or place is inserted more often than not, and big things are drawn although no picture is wanted.
"""

from __future__ import annotations

import itertools
import random
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeGuard

from ...configs.bounds import Share
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...data.sentences import sentences
from ...models.documents.candidates import offer
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from ..picture_stories.scenes import (
    CLEAN,
    MAX_SCENES,
    MIN_SCENES,
    SCENES,
    Noise,
    Scene,
    another,
    draw_scene,
    parse_scene,
    read_sentence,
    scraped,
    warmup_documents,
)

Choice = Literal["insert", "generate", "leave"]
CHOICES: tuple[Choice, ...] = ("insert", "generate", "leave")
NO_PICTURE = " (no picture)"
LETTERS = string.ascii_lowercase
"""Steps are lettered, in the prompt and before their sentences: counting them is hard where pictures stand between."""
LABEL = re.compile(r"\b[a-z]\) ")
"""The letter of a step, as a model writes it."""
MIN_CANDIDATES, MAX_CANDIDATES = 2, 3
NOTHING_OFFERED = 0.4
"""Share of stories to learn from without candidates: half as long, they teach what a step says and how it is drawn."""
OVERLOOKED = ("size", "cell")
"""Attributes in which scraped pages overlook that a picture does not fit."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prompt asks for: scenes, which of them want a picture, and the pictures offered."""

    scenes: tuple[Scene, ...]
    pictured: tuple[bool, ...]
    candidates: tuple[Scene, ...]

    def __post_init__(self) -> None:
        if len(set(self.scenes)) < len(self.scenes) or len(set(self.candidates)) < len(self.candidates):
            raise ValueError("a scene stands twice; which picture belongs where would be open")
        if len(self.scenes) > len(LETTERS):
            raise ValueError(f"{len(self.scenes)} steps; there are letters for {len(LETTERS)}")

    @property
    def steps(self) -> list[str]:
        """As the prompt words them."""
        return [s.words + NO_PICTURE * (not p) for s, p in zip(self.scenes, self.pictured, strict=True)]

    def wanted(self, step: int) -> tuple[Choice, int | None]:
        """The gold choice at a step, and the candidate to insert."""
        if not self.pictured[step]:
            return "leave", None
        scene = self.scenes[step]
        return ("insert", self.candidates.index(scene) + 1) if scene in self.candidates else ("generate", None)

    def near_misses(self, step: int) -> list[int]:
        """Candidates that differ from a step in one overlooked attribute alone."""
        scene = self.scenes[step]
        return [
            number
            for number, other in enumerate(self.candidates, 1)
            if any(other != scene and replace(other, **{name: getattr(scene, name)}) == scene for name in OVERLOOKED)
        ]


@dataclass(frozen=True)
class InsertionNoise:
    """How often a step of a warm-up story is wrong; shares of 0 to 1. All zero gives clean data."""

    biased: Share = 0.65
    """A near miss in size or place is inserted where none fits; big things are drawn where no picture is wanted."""
    choice: Share = 0.12
    """Another of the three choices than the one wanted."""
    story: Noise = field(default_factory=Noise)
    """Of sentences and drawn pictures, as in `picture_stories`."""

    def __post_init__(self) -> None:
        check_ranges(self, "noise")


NO_NOISE = InsertionNoise(0, 0, CLEAN)


def draw_plan(rng: random.Random) -> Plan:
    """Two to four scenes, a quarter without a picture; candidates fit as many of the others as chance has it.

    A distractor is a near miss, in any one attribute, of a step that no candidate fits, as long as there is one.
    """
    scenes = tuple(rng.sample(SCENES, rng.randint(MIN_SCENES, MAX_SCENES)))
    pictured = tuple(rng.random() >= 0.25 for _ in scenes)
    count = rng.randint(MIN_CANDIDATES, MAX_CANDIDATES)
    wanting = [scene for scene, wants in zip(scenes, pictured, strict=True) if wants]
    rng.shuffle(wanting)
    fitting = wanting[: rng.randint(0, min(count, len(wanting)))]
    candidates, tempted = list(fitting), wanting[len(fitting) :] or list(scenes)
    while len(candidates) < count:
        distractor = another(rng, rng.choice(tempted))
        if distractor not in scenes and distractor not in candidates:
            candidates.append(distractor)
    rng.shuffle(candidates)
    return Plan(scenes, pictured, tuple(candidates))


def draw_plans(seed: int, count: int, exclude: frozenset[Plan] = frozenset()) -> list[Plan]:
    """Distinct plans, none of them in `exclude`."""
    rng, found = random.Random(f"plans {seed}"), {}
    while len(found) < count:
        plan = draw_plan(rng)
        if plan not in exclude:
            found[plan] = None
    return list(found)


def thinned(rng: random.Random, plan: Plan) -> Plan:
    """The plan, or in NOTHING_OFFERED of all cases the plan without candidates."""
    return replace(plan, candidates=()) if rng.random() < NOTHING_OFFERED else plan


def insertion_prompt(plan: Plan, identifier: str = "") -> InterleavedDocument:
    """The prompt of a plan; `meta` holds the plan, which the verifiers compare with."""
    meta = {"steps": plan.steps, "candidates": [scene.words for scene in plan.candidates]}
    pictures = [(draw_scene(scene), "") for scene in plan.candidates]
    steps = "; ".join(f"{letter}) {words}" for letter, words in zip(LETTERS, plan.steps, strict=False))
    return offer(f"Illustrate: {steps}.", pictures, identifier, meta)


def read_plan(value: Any, where: str = "") -> Plan:
    """`{"steps": ["small red circle top left (no picture)", ...], "candidates": [...]}` -> Plan.

    Raises InputError naming `where`.
    """
    where = where and f"{where}: "
    steps, candidates = (None, None) if not isinstance(value, dict) else (value.get("steps"), value.get("candidates"))
    if not steps or not _are_words(steps) or not _are_words(candidates):
        raise InputError(f'{where}expected {{"steps": ["small red circle top left", ...], "candidates": [...]}}')
    try:
        return Plan(
            tuple(parse_scene(step.removesuffix(NO_PICTURE)) for step in steps),
            tuple(not step.endswith(NO_PICTURE) for step in steps),
            tuple(parse_scene(words) for words in candidates),
        )
    except (InputError, ValueError) as error:
        raise InputError(f"{where}{error}") from None


def _are_words(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(words, str) for words in value)


def plan_of(prompt: InterleavedDocument) -> Plan:
    """Raises InputError where the prompt is not one of this world."""
    return read_plan(prompt.meta, f"prompt {prompt.id!r}")


def insertion_story(
    plan: Plan, identifier: str = "", noise: InsertionNoise = NO_NOISE, rng: random.Random | None = None
) -> InterleavedDocument:
    """Prompt and answer: a sentence for each step, and what is chosen there; without `rng` the gold document."""
    prompt = insertion_prompt(plan, identifier)
    offered, left = prompt.candidates, set(prompt.candidates)
    segments: list[Segment] = []
    for step, scene in enumerate(plan.scenes):
        choice, candidate = plan.wanted(step)
        said: Scene = scene
        shown: Scene | None = scene
        if rng is not None:
            choice, candidate = _placed(rng, plan, step, left, noise)
            said, shown = scraped(rng, scene, noise.story)
        left.discard(candidate)
        text = f"{LETTERS[step]}) {said.sentence}"
        if choice != "leave":
            text += looks(scene, plan.candidates[:candidate], candidate)
        if segments and isinstance(segments[-1], TextSegment):
            segments[-1] = replace(segments[-1], text=f"{segments[-1].text} {text}")
        else:
            segments.append(TextSegment(text, trainable=True))
        if candidate is not None:
            segments.append(offered[candidate])
        elif choice == "generate" and shown is not None:
            segments.append(ImageSegment(draw_scene(shown), trainable=True, origin="generated"))
    return replace(prompt, segments=(*prompt.segments, *segments), meta={**prompt.meta, "kind": "interleaved"})


def _placed(
    rng: random.Random, plan: Plan, step: int, left: set[int], noise: InsertionNoise
) -> tuple[Choice, int | None]:
    """What a scraped page does at a step; `left` are the candidates that do not stand yet."""
    choice: Choice
    choice, candidate = plan.wanted(step)
    near = [number for number in plan.near_misses(step) if number in left]
    if choice == "generate" and near and rng.random() < noise.biased:
        choice, candidate = "insert", rng.choice(near)
    elif choice == "leave" and plan.scenes[step].size == "big" and rng.random() < noise.biased:
        choice = "generate"
    if rng.random() < noise.choice:
        others: list[Choice] = [other for other in CHOICES if other != choice]
        choice, candidate = rng.choice(others), None
    if choice == "insert" and candidate not in left:
        if not left:
            return "leave", None
        candidate = rng.choice(sorted(left))
    return choice, candidate


LOOK = re.compile(r" ?\(([1-9])\)((?: [a-z]+)*)")
"""A look at a candidate, as a model writes it: number and words."""


def looks(scene: Scene, candidates: Sequence[Scene], inserted: int | None) -> str:
    """What candidates show, each up to the first word that is not the scene's; of the inserted one all words."""
    text = ""
    for number, candidate in enumerate(candidates, 1):
        words = candidate.words.split()
        alike = [a == b for a, b in zip(words, scene.words.split(), strict=True)]
        read = len(words) if number == inserted or all(alike) else alike.index(False) + 1
        text += f" ({number}) {' '.join(words[:read])}"
    return text


SCENES_ASKED = 3


def candidate_question(rng: random.Random, identifier: str = "") -> InterleavedDocument:
    """A clean question about candidates: what they show, or which of some scenes they are.

    Half of the scenes are candidates, a quarter differs from one in one attribute, a quarter is any.
    """
    plan = draw_plan(rng)
    shown = plan.candidates
    if rng.random() < 0.5:
        text = "Describe the candidates."
        answer = " ".join(f"({number}) {scene.words}" for number, scene in enumerate(shown, 1))
    else:
        kinds = rng.choices(("candidate", "near", "any"), (2, 1, 1), k=SCENES_ASKED)
        nearest = [rng.choice(SCENES if kind == "any" else shown) for kind in kinds]
        asked = [another(rng, s) if kind == "near" else s for s, kind in zip(nearest, kinds, strict=True)]
        text = f"Which candidates are these? {'; '.join(scene.words for scene in asked)}."
        found = [shown.index(scene) + 1 if scene in shown else None for scene in asked]
        read = [s.sentence + looks(s, shown[:n], n) for s, n in zip(asked, found, strict=True)]
        answer = " ".join(f"{words} {n or 'none'}." for words, n in zip(read, found, strict=True))
    prompt = offer(text, [(draw_scene(scene), "") for scene in shown], identifier)
    meta = {"kind": "understanding", "task": "candidates"}
    return replace(prompt, segments=(*prompt.segments, TextSegment(answer, trainable=True)), meta=meta)


def insertion_documents(
    kind: str, seed: int, noise: InsertionNoise, exclude: frozenset[Plan]
) -> Iterator[InterleavedDocument]:
    """An endless stream of one kind of warm-up documents.

    Of understanding 70 % are questions about candidates; the rest, and text-to-image, is that of `picture_stories`.
    """
    rng = random.Random(f"insertion {kind} {seed}")
    plain = None if kind == "interleaved" else warmup_documents(kind, seed, CLEAN, frozenset())
    for number in itertools.count():
        identifier = f"{kind}-{number:07d}"
        if plain is None:
            plan = draw_plan(rng)
            if plan not in exclude:
                yield insertion_story(thinned(rng, plan), identifier, noise, rng)
        elif kind == "understanding" and rng.random() < 0.7:
            yield candidate_question(rng, identifier)
        else:
            yield replace(next(plain), id=identifier)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step of an answer, as it was written."""

    said: Scene | None
    """None where the sentence states no scene in the world's wording, or where there is none."""
    images: tuple[ImageSegment, ...]
    segment: int | None
    """Index of the text that holds the sentence."""
    places: tuple[int, ...]
    """Indices of the pictures."""

    @property
    def choice(self) -> tuple[Choice, int | None] | None:
        """What was chosen; None for several pictures, which no step wants."""
        if len(self.images) > 1:
            return None
        for image in self.images:
            return ("insert", image.candidate) if image.origin == "inserted" else ("generate", None)
        return "leave", None


def read_steps(segments: Sequence[Segment]) -> list[Step]:
    """The steps of an answer: each sentence with the pictures up to the next; those before any are one more.

    Looks at candidates belong to no step.
    """
    steps: list[Step] = []
    for index, segment in enumerate(segments):
        if isinstance(segment, TextSegment):
            said = sentences(LABEL.sub("", LOOK.sub("", segment.text)))
            steps += [Step(read_sentence(words), (), index, ()) for words in said if words.strip()]
            continue
        last = steps.pop() if steps else Step(None, (), None, ())
        steps.append(replace(last, images=(*last.images, segment), places=(*last.places, index)))
    return steps
