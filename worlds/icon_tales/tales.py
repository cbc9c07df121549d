"""Icon tales: a request names two or three things; the answer has one English sentence, and one picture, for each.

    Tell a short tale with pictures about an owl, then a cake.
    -> We once saw an owl in the deep snow. [picture] Soon a cake stood alone at night. [picture]

The wording is free; a sentence is right where it names the thing that is its turn, no other, and one place: the snow,
the grass, the night. Which place is the writer's choice, and its picture has to follow. Tales to be imitated are noisy,
as scraped data are, and part of the noise is biased: the *mode* of a model that imitates them is wrong.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...configs.bounds import Share
from ...configs.errors import InputError
from ...configs.schema import check_ranges
from ...models.documents.document import ImageSegment, InterleavedDocument, Segment, TextSegment
from .icons import NOUNS, PLACES, SPOTS, Icons, Shown

NEVER_TOLD = ("turtle", "car", "bell", "crown")
"""In no tale to learn from; only text-to-image data show them."""
TOLD = tuple(noun for noun in NOUNS if noun not in NEVER_TOLD)
NEVER_TOGETHER = frozenset(("owl", "cow", "frog", "snail", "boat", "drum", "apple", "key"))
"""In tales to learn from no two of these meet."""
LENGTHS = (2, 2, 3)
"""Things of a tale, each as likely."""
MOST_WORDS = 16
"""Of a sentence."""

PHRASES = {
    "snow": ("in the snow", "in the deep snow", "out in the snow", "in the cold snow"),
    "grass": ("in the grass", "in the tall grass", "on the green grass", "down in the grass"),
    "night": ("at night", "late at night", "in the dark night", "in the middle of the night"),
}
FRAMES = (
    *("There was {a} {there}.", "One day we found {a} {there}.", "We once saw {a} {there}.", "Soon {a} came {there}."),
    *("At last {a} was seen {there}.", "{A} waited {there}.", "{A} stood alone {there}.", "I drew {a} {there}."),
    *("Nobody expected {a} {there}.", "Everyone looked at {a} {there}.", "It was only {a} {there}."),
    *("My friend noticed {a} {there}.", "Then came {a} {there}.", "You could find {a} {there}."),
    *("The {n} was lost {there}.", "The {n} looked small {there}.", "They left the {n} {there}."),
    *("The {n} was very happy {there}.", "We all loved the {n} {there}.", "The old {n} rested {there}."),
)
REQUESTS = (
    *("Tell a short tale with pictures about {things}.", "Write an illustrated story about {things}."),
    *("Please illustrate a little story: {things}.", "Make a picture book about {things}."),
    *("A tale of {things}, with pictures, please.", "Can you tell and draw a story about {things}?"),
    *("Tell me something about {things} and draw it.", "I would like a short illustrated tale of {things}."),
    *("Show and tell: {things}.", "Write one sentence and draw one picture each for {things}."),
    *("My child wants a picture story about {things}.", "Once upon a time there was {things}. Tell it in pictures."),
    *("Create a small story with images of {things}.", "In words and pictures: {things}."),
    *("Describe and paint {things}, one after the other.", "Give me a brief illustrated tale: {things}."),
    *("Could you write a tiny comic about {things}?", "Let us have a story with drawings about {things}."),
    *("Invent a bedtime story with pictures: {things}.", "Tell a story in which we meet {things}; draw each."),
)
DRAWINGS = ("Draw {a} {there}.", "A picture of {a} {there}, please.", "Paint {a} {there}.", "Show me {a} {there}.")

CALLED = {"duck": "owl", "dog": "fox"}
"""Biased noise: what the sentences to imitate call these more often than not."""
DRAWN = {"horse": "cow", "cake": "drum", "rabbit": "cat"}
"""Biased noise: what the pictures to imitate show instead."""
TURNED = {"night": "snow"}
"""Biased noise: where they show it instead."""

Sentences = Mapping[Shown, Sequence[str]]
"""Sentences by what they say."""


@dataclass(frozen=True, slots=True)
class Request:
    nouns: tuple[str, ...]
    wording: str
    """One with `{things}` in it."""

    def prompt(self, identifier: str = "") -> InterleavedDocument:
        """`meta["outline"]` has the nouns; verifiers compare with it."""
        words = [with_article(noun) for noun in self.nouns]
        things = ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else words[0]
        text = self.wording.format(things=things)
        return InterleavedDocument((TextSegment(text),), identifier, {"outline": list(self.nouns)})


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def fill(frame: str, shown: Shown, there: str) -> str:
    a = with_article(shown.noun)
    return frame.format(a=a, A=a.capitalize(), n=shown.noun, there=there)


_LETTERS = re.compile(r"[a-z]+")
_END = re.compile(r"[.!?\n]")
_STEMS = {f"{noun}{ending}": noun for noun in NOUNS for ending in ("", "s", "es")}
_PLACES = {"snow": "snow", "snowy": "snow", "grass": "grass", "grassy": "grass", "night": "night", "nights": "night"}


@dataclass(frozen=True, slots=True)
class Said:
    """What a text says. None where it says nothing, or several things."""

    noun: str | None
    place: str | None

    @property
    def shown(self) -> Shown | None:
        """What its picture must show."""
        return Shown(self.noun, self.place) if self.noun and self.place else None


def read_sentence(text: str) -> Said:
    """One sentence of at most `MOST_WORDS` words, one thing of this world and one place; else it says nothing."""
    text = text.strip()
    words = _LETTERS.findall(text.lower())
    behind = _END.split(text, maxsplit=1)[-1]
    if not text or text[-1] not in ".!?" or re.search(r"\w", behind) or len(words) > MOST_WORDS:
        return Said(None, None)
    nouns = {_STEMS[word] for word in words if word in _STEMS}
    places = {_PLACES[word] for word in words if word in _PLACES}
    return Said(nouns.pop() if len(nouns) == 1 else None, places.pop() if len(places) == 1 else None)


def is_new_pair(nouns: Sequence[str]) -> bool:
    return len(NEVER_TOGETHER.intersection(nouns)) > 1


def draw_request(rng: random.Random, nouns: Sequence[str] = TOLD) -> Request:
    return Request(tuple(rng.sample(nouns, rng.choice(LENGTHS))), rng.choice(REQUESTS))


def training_requests(rng: random.Random) -> Iterator[Request]:
    """Without end; none with things that never meet."""
    return (r for r in iter(lambda: draw_request(rng), None) if not is_new_pair(r.nouns))


KINDS: dict[str, Callable[[Sequence[str]], bool]] = {
    "known": lambda nouns: {*nouns} <= {*TOLD} and not is_new_pair(nouns),
    "new_pair": lambda nouns: {*nouns} <= {*TOLD} and is_new_pair(nouns),
    "never_told": lambda nouns: bool({*nouns} & {*NEVER_TOLD}),
}
"""Held-out requests: things in an order that no training tale has; two that never met; one that no tale has told of."""


def kind_of(request: Request) -> str:
    return next(name for name, holds in KINDS.items() if holds(request.nouns))


def heldout_requests(seed: int, count: int) -> list[Request]:
    """Half of known things, a quarter each of new pairs and of things that were never told of; nouns all distinct."""
    rng, found = random.Random(seed), dict[tuple[str, ...], Request]()
    shares = {"known": count - 2 * (count // 4), "new_pair": count // 4, "never_told": count // 4}
    for kind, share in shares.items():
        wanted = len(found) + share
        while len(found) < wanted:
            request = draw_request(rng, NOUNS)
            if KINDS[kind](request.nouns):
                found.setdefault(request.nouns, request)
    order = list(found.values())
    rng.shuffle(order)
    return order


@dataclass(frozen=True)
class Noise:
    """How often a step of a tale to imitate is wrong; shares of 0 to 1."""

    biased: Share = 0.65
    """Ducks called owls and dogs foxes; horses drawn as cows, cakes as drums, rabbits as cats, the night as snow."""
    sentence: Share = 0.08
    """The sentence is of another thing."""
    picture: Share = 0.10
    """The picture shows another thing, or another place."""
    missing: Share = 0.06
    """The picture is missing."""

    def __post_init__(self) -> None:
        check_ranges(self, "noise")


def scraped(rng: random.Random, plan: Shown, noise: Noise) -> tuple[Shown, Shown | None]:
    """What a scraped page says of a planned thing: (sentence, picture or None)."""
    said = plan
    if rng.random() < noise.biased:
        said = replace(said, noun=CALLED.get(said.noun, said.noun))
    if rng.random() < noise.sentence:
        said = replace(said, noun=rng.choice([noun for noun in TOLD if noun != plan.noun]))
    shown = said
    if rng.random() < noise.biased:
        shown = replace(shown, noun=DRAWN.get(shown.noun, shown.noun))
    if rng.random() < noise.biased:
        shown = replace(shown, place=TURNED.get(shown.place, shown.place))
    if rng.random() < noise.picture:
        other = {"noun": TOLD, "place": tuple(PLACES)}
        name = rng.choice(list(other))
        shown = replace(shown, **{name: rng.choice([one for one in other[name] if one != getattr(shown, name)])})
    return said, None if rng.random() < noise.missing else shown


def tale(
    request: Request,
    rng: random.Random,
    icons: Icons,
    written: Sentences,
    noise: Noise | None = None,
    identifier: str = "",
) -> InterleavedDocument:
    """Request and answer; every other one, about, in sentences that were written, the rest in those of frames.

    noise: none gives what was asked for.
    """
    document, own = request.prompt(identifier), rng.random() < 0.5
    segments: list[Segment] = list(document.segments)
    for noun in request.nouns:
        plan = Shown(noun, rng.choice(list(PLACES)))
        said, shown = scraped(rng, plan, noise) if noise else (plan, plan)
        sentences = written.get(said) if own else None
        frame = fill(rng.choice(FRAMES), said, rng.choice(PHRASES[said.place]))
        segments.append(TextSegment(rng.choice(sentences) if sentences else frame, trainable=True))
        if shown is not None:
            segments.append(_picture(icons, shown, rng))
    return replace(document, segments=tuple(segments), meta={**document.meta, "kind": "interleaved"})


def text_to_image(shown: Shown, rng: random.Random, icons: Icons, identifier: str = "") -> InterleavedDocument:
    prompt = fill(rng.choice(DRAWINGS), shown, rng.choice(PHRASES[shown.place]))
    meta = {"kind": "text_to_image", "noun": shown.noun, "place": shown.place}
    return InterleavedDocument((TextSegment(prompt), _picture(icons, shown, rng)), identifier, meta)


def drawings(seed: int, icons: Icons) -> Iterator[InterleavedDocument]:
    """Clean text-to-image data of all things, without end."""
    rng = random.Random(f"text_to_image {seed}")
    for number in itertools.count():
        shown = Shown(rng.choice(NOUNS), rng.choice(list(PLACES)))
        yield text_to_image(shown, rng, icons, f"text_to_image-{number:07d}")


def tales(
    seed: int, icons: Icons, written: Sentences, noise: Noise, exclude: frozenset[tuple[str, ...]]
) -> Iterator[InterleavedDocument]:
    """Noisy tales to imitate, without end; none of nouns in `exclude`."""
    rng = random.Random(f"interleaved {seed}")
    requests = (request for request in training_requests(rng) if request.nouns not in exclude)
    return (tale(request, rng, icons, written, noise, f"interleaved-{i:07d}") for i, request in enumerate(requests))


def _picture(icons: Icons, shown: Shown, rng: random.Random) -> ImageSegment:
    return ImageSegment(icons.draw(shown, rng.choice(SPOTS)), trainable=True, origin="generated")


def read_nouns(value: Any, where: str = "") -> tuple[str, ...]:
    """A list of distinct things of this world. Raises InputError naming `where`."""
    known = isinstance(value, list) and value and all(isinstance(noun, str) and noun in NOUNS for noun in value)
    if not known or len({*value}) < len(value):
        raise InputError(f"{where}expected a list of different things out of {', '.join(NOUNS)}, not {value!r:.80}")
    return tuple(value)
