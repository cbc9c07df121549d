"""Prompts of RL: documents as rows of a dataset, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..configs.errors import InputError, reading
from ..configs.options import make
from ..configs.registry import entries, find, register
from ..models.documents.document import InterleavedDocument, TextSegment


def pack_prompt(prompt: InterleavedDocument) -> str:
    """A prompt as one string, pictures inline: the `prompt` column that TRL hands around.

    Raises InputError naming a prompt whose picture does not decode.
    """
    try:
        return json.dumps(prompt.to_json())
    except ValueError as error:
        raise InputError(f"prompt {prompt.id!r}: {error}") from None


def unpack_prompt(value: str) -> InterleavedDocument:
    return InterleavedDocument.from_json(json.loads(value))


def read_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """(place, object) of each line of a JSONL file. Raises InputError naming file and line."""
    with reading(path):
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON strings may hold what `splitlines` splits at
    found = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        found += 1
        yield f"{path}:{number}", value
    if not found:
        raise InputError(f"{path}: no lines; expected one JSON object a line")


class PromptForm(Protocol):
    """How one line of a file becomes a prompt. A form is registered under the key that tells a line of its own."""

    def __call__(self, value: dict[str, Any], identifier: str) -> InterleavedDocument | str:
        """Raises InputError (without the place, which is added) for a line that is none of its form."""
        ...


@register("prompt", "prompt")
def text_prompt(value: dict[str, Any], identifier: str) -> InterleavedDocument:
    """{"prompt": "text"}"""
    if not isinstance(value["prompt"], str):
        raise InputError(f"`prompt` is a {type(value['prompt']).__name__}, no text")
    return InterleavedDocument((TextSegment(value["prompt"]),), identifier)


@register("prompt", "segments")
def document_prompt(value: dict[str, Any], identifier: str) -> InterleavedDocument:
    """A whole document, {"segments": [...]}; what is trainable in it is left out."""
    try:
        prompt = InterleavedDocument.from_json(value).prompt
    except ValueError as error:
        raise InputError(str(error)) from None
    return replace(prompt, id=prompt.id or identifier)


def read_prompts(path: Path, least: int = 1, form: str = "") -> list[InterleavedDocument]:
    """Prompts of a JSONL file, one a line; raises InputError where there are fewer than `least`.

    form: a registered one, or a file's or module's; by default each line is of the form whose name is one of its keys.
    A prompt without an id gets its file and line, by which later messages name it.
    """
    chosen = prompt_form(form) if form else None
    forms = {} if chosen else {name: prompt_form(name) for name in entries("prompt")}
    prompts = [prompt_of(value, place, chosen or _form_of(value, forms, place)) for place, value in read_lines(path)]
    if len(prompts) < least:
        raise InputError(
            f"{path}: {len(prompts)} prompts, and a batch of rollouts takes {least}; add some, or lower "
            "steps_per_generation"
        )
    return prompts


def prompt_form(name: str) -> PromptForm:
    """Raises InputError where there is none of that name."""
    found = find("prompt", name, "prompt_form")
    return make(found, {}, "prompt_form") if isinstance(found.thing, type) else found.thing


def prompt_of(value: Any, place: str, form: PromptForm) -> InterleavedDocument:
    """The prompt of one line. Raises InputError naming the line."""
    identifier = Path(place).name
    try:
        made = form(value, identifier)
    except Exception as error:  # whoever wrote the form knows what it may raise; the line is at fault, or the form
        words = str(error) if isinstance(error, InputError) else f"the form raises {type(error).__name__}: {error}"
        raise InputError(f"{place}: {words}") from error
    if isinstance(made, str):
        made = InterleavedDocument((TextSegment(made),))
    if not isinstance(made, InterleavedDocument):
        raise InputError(f"{place}: the form gives a {type(made).__name__}, neither a document nor a text")
    return replace(made, id=made.id or identifier)


def _form_of(value: Any, forms: Mapping[str, PromptForm], place: str) -> PromptForm:
    keys = [name for name in forms if isinstance(value, dict) and name in value]
    if len(keys) != 1:
        found = f"{' and '.join(keys)} stand in one line" if keys else "the line is of no form that is known"
        said = "; ".join(f"{name}: {entry.doc}" for name, entry in entries("prompt").items())
        raise InputError(f"{place}: {found} ({said}); give one, or read it by a form of your own (prompt_form)")
    return forms[keys[0]]
