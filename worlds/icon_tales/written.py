"""What the released model itself writes, once, before it is trained: sentences for tales, and answers to keep.

Sentences are filtered by rule: `read_sentence` finds what was asked for. Answers to plain instructions are kept as they
are, where they ended by themselves: they say what the model was like, good or bad.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

from ...models.documents.document import InterleavedDocument, TextSegment
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling
from ...models.writing import write
from .icons import PLACES, Shown
from .tales import PHRASES, TOLD, read_sentence, with_article

SENTENCE_TOKENS, ANSWER_TOKENS = 32, 160
ASKED = (
    "Write one short sentence about {a} {there}.",
    "Begin a story for children with one short sentence: {a} {there}.",
    "Complete in one sentence of at most ten words: Once we saw {a} {there}",
)
TASKS = (
    *("What is {topic}?", "Explain {topic} in one sentence.", "Write one sentence about {topic}."),
    *("Give me one fact about {topic}.", "Why do people like {topic}?", "Give me three words that go with {topic}."),
    *("Write a short question about {topic}.", "Is {topic} useful? Answer briefly."),
    *("Give me one piece of advice about {topic}.", "Say something kind about {topic}."),
    *("Tell me about {topic}.", "Write a short text about {topic}.", "Write a paragraph about {topic}."),
    *("Describe {topic} to a child.", "What should a beginner know about {topic}?"),
    "Explain step by step how one gets to know {topic}.",
)
TOPICS = (
    *("tea", "bread", "the sea", "a bicycle", "music", "the rain", "a garden", "mathematics", "football", "sleep"),
    *("a library", "the moon", "coffee", "friendship", "a train journey", "a computer", "the summer", "cooking soup"),
    *("a good book", "a mountain", "swimming", "electricity", "cheese", "a hospital", "history", "a river"),
    *("a letter", "work", "holidays", "painting a wall", "time", "learning a language", "money", "a bridge"),
)


def plain(text: str, identifier: str = "") -> InterleavedDocument:
    return InterleavedDocument((TextSegment(text),), identifier)


def write_sentences(policy: UnifiedPolicy, seed: int, each: int) -> tuple[dict[Shown, list[str]], int]:
    """`each` tries for every thing that tales tell of, in every place; (what passed, different ones; tries)."""
    asked = [Shown(*pair) for pair in itertools.product(TOLD, PLACES) for _ in range(each)]
    rng = random.Random(seed)
    prompts = [
        plain(rng.choice(ASKED).format(a=with_article(one.noun), there=rng.choice(PHRASES[one.place]))) for one in asked
    ]
    sampling = Sampling(max_new_tokens=SENTENCE_TOKENS, temperature=0.6, top_p=0.9, max_images=0, seed=seed)
    found: dict[Shown, list[str]] = {}
    for wanted, answer in zip(asked, write(policy, prompts, sampling), strict=True):
        sentence = first_sentence(answer.text)
        known = found.setdefault(wanted, [])
        if read_sentence(sentence).shown == wanted and sentence not in known:
            known.append(sentence)
    return found, len(asked)


def first_sentence(text: str) -> str:
    """Without quotation marks; empty where none ends."""
    found = re.match(r"[^.!?\n]+[.!?]", text.strip().replace('"', ""))
    return found[0].strip() if found else ""


def write_answers(policy: UnifiedPolicy, seed: int, count: int) -> tuple[list[tuple[str, str]], int]:
    """(instruction, answer) that ended by themselves, and how many were asked for.

    Sampled at temperature 1, however they read: samples of the model's own distribution are what its training on them
    leaves as it is, in the mean; colder ones would sharpen it.
    """
    pairs = list(itertools.product(TASKS, TOPICS))
    chosen = random.Random(seed).sample(pairs, min(count, len(pairs)))
    instructions = [task.format(topic=topic) for task, topic in chosen]
    sampling = Sampling(max_new_tokens=ANSWER_TOKENS, max_images=0, seed=seed)
    answers = write(policy, [plain(text) for text in instructions], sampling)
    return _ended(instructions, answers), len(instructions)


def _ended(instructions: Sequence[str], answers: Sequence) -> list[tuple[str, str]]:
    return [
        (asked, answer.text)
        for asked, answer in zip(instructions, answers, strict=True)
        if answer.ended and answer.text.strip()
    ]


def kept_document(asked: str, answer: str, identifier: str) -> InterleavedDocument:
    segments = (TextSegment(asked), TextSegment(answer, trainable=True))
    return InterleavedDocument(segments, identifier, {"kind": "understanding", "task": "kept"})
