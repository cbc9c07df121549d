"""What an inserter is asked and how it answers: a finished text and numbered candidates in, a list of placements out.

    Question: How is soup made?
    Sentences:
    1. Cut the onion.
    2. Fry it.
    Pictures:
    img 1: a cut onion
    img 2: a bicycle
    Which pictures stand after which sentences?

    <think>Only the onion fits.</think><answer>[{"img": 1, "after": 1}]</answer>

`after` 0 is before the first sentence; an empty list places nothing. Each sentence and each candidate is one line, and
no text of others can begin a line, be a control token of the model, or be a tag of the answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...configs.json_text import parse_json
from ...models.documents.candidates import escape_markers
from .placements import InsertionTask, Placement, settled

INSTRUCTIONS = (
    "You illustrate a finished text. Choose the pictures that belong into it and say after which sentence each stands: "
    "0 is before the first. Leave out pictures that do not belong. Think first, then answer with a JSON list:\n"
    '<think>...</think><answer>[{"img": 1, "after": 2}]</answer>'
)
SENTENCES, PICTURES = "Sentences:", "Pictures:"
ENQUIRY = "Which pictures stand after which sentences?"
MAX_TEXT = 600
"""Characters of a sentence or a caption that are shown; the rest is cut off with three dots."""
CONTROL = re.compile(r"<(?=\||/?\s*(?:think|answer)\b)", re.IGNORECASE)
THINK_END, ANSWER, ANSWER_END = "</think>", "<answer>", "</answer>"
NO_THOUGHT = f"<think>{THINK_END}"
WHOLE = re.compile(r"\s*<think>(?:(?!</?(?:think|answer)>).)*</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)
TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.DOTALL)
FAULTS = ("no answer", "no JSON", "wrong fields", "out of range", "repeated")
"""Why an answer, or an entry of it, places nothing."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer, read."""

    placements: tuple[Placement, ...]
    """Those that hold, in the order of the text; none where the answer as a whole cannot be read."""
    faults: Counter[str]
    """By kind, see FAULTS. An answer without any is right in form, and if it places nothing, an abstention."""
    framed: bool
    """One thought and one answer in their tags, and nothing around them."""


def messages(task: InsertionTask, pixels: bool = False, controls: Collection[str] = ()) -> list[Message]:
    """The conversation that asks for the placements, as chat templates of transformers take it.

    pixels: structured content with an image part a candidate, as vision-language models read it; the pictures
    themselves are `pictures(task)`. controls: special tokens of the tokenizer, which texts of others may not contain.
    """
    lines = [f"Question: {line(task.question, controls)}", SENTENCES]
    lines += [f"{number}. {line(sentence, controls)}" for number, sentence in enumerate(task.sentences, 1)]
    captions = [
        f"img {number}: {line(candidate.caption or candidate.context, controls)}"
        for number, candidate in enumerate(task.candidates, 1)
    ]
    if not pixels:
        text = "\n".join([*lines, PICTURES, *captions, ENQUIRY])
        return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}]
    parts = [_text("\n".join([*lines, PICTURES]) + "\n")]
    for caption, candidate in zip(captions, task.candidates, strict=True):
        parts += [_text(caption + " "), {"type": "image"}] if candidate.image is not None else [_text(caption)]
        parts.append(_text("\n"))
    parts.append(_text(ENQUIRY))
    return [{"role": "system", "content": [_text(INSTRUCTIONS)]}, {"role": "user", "content": parts}]


def pictures(task: InsertionTask) -> list[Any]:
    """Those of the candidates that have one, in the order of the image parts of `messages`."""
    return [candidate.image for candidate in task.candidates if candidate.image is not None]


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def line(text: str, controls: Collection[str] = ()) -> str:
    """Text of others as one line of a prompt: what looks like a control token, a tag or a marker gets a space in it.

    A control token without a `<`, such as `[INST]`, is found only where `controls` names it.
    """
    text = " ".join(text.split())
    text = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
    text = CONTROL.sub("< ", escape_markers(text))
    for control in controls:
        if len(control) > 1:
            text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def answer_text(placements: Sequence[Placement], thought: str = "") -> str:
    """The answer that places these, in their order."""
    return f"<think>{thought}{THINK_END}{ANSWER}{json.dumps(as_json(placements))}{ANSWER_END}"


def as_json(placements: Sequence[Placement]) -> list[dict[str, int]]:
    return [{"img": placement.candidate, "after": placement.after} for placement in placements]


def from_json(value: Sequence[dict[str, int]]) -> tuple[Placement, ...]:
    """The inverse of `as_json`."""
    return tuple(Placement(item["after"], item["img"]) for item in value)


def read_answer(text: str, length: int, candidates: int) -> Answer:
    """Strict: one answer in its tags, a JSON list of `{"img": K, "after": N}` and nothing else in it.

    Entries with wrong fields place nothing and are counted, those that are out of range or repeated as `settled` says.
    """
    faults: Counter[str] = Counter()
    framed = WHOLE.fullmatch(text) is not None
    found = TAGGED.findall(text)
    if len(found) != 1:
        return Answer((), Counter({"no answer": 1}), False)
    try:
        value = parse_json(found[0])
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list):
        return Answer((), Counter({"no JSON": 1}), framed)
    placements = []
    for item in value:
        if isinstance(item, dict) and {name: type(item[name]) for name in item} == {"img": int, "after": int}:
            placements.append(Placement(item["after"], item["img"]))
        else:
            faults["wrong fields"] += 1
    kept, others = settled(placements, length, candidates)
    return Answer(kept, faults + others, framed)
