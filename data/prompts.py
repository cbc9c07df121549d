"""Prompts of RL: documents as rows of a dataset, whatever they hold."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..configs.errors import InputError, plain_file, reading
from ..configs.json_text import json_at
from ..configs.options import make
from ..configs.registry import entries, find, register
from ..configs.schema import did_you_mean
from ..models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from ..models.documents.forms import kind_of, make_prompt

SEPARATOR = re.compile(r"[\s,]*")
KEYS = ("prompt", "image", "images", "id", "meta")
"""Of a line in the form `prompt`."""


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


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, value) of each record of a file of JSON lines, in any of the forms in which such files are published.

    Lines may end in commas, a record may take several lines, and the whole may be one JSON list, whatever the file is
    called. Raises InputError naming file and line.
    """
    yield from records_in(read_values(path), path)


def records_in(values: list[tuple[str, Any]], path: Path) -> list[tuple[str, Any]]:
    """(place, value) of each record among the values of a file: themselves, or those of the one list that it is."""
    if len(values) == 1 and isinstance(values[0][1], list):
        values = [(f"{path}: record {number}", value) for number, value in enumerate(values[0][1], 1)]
    if not values:
        raise InputError(f"{path}: no records; expected one JSON object a line")
    return values


def read_values(path: Path) -> list[tuple[str, Any]]:
    """(place, value) of each JSON value of a file, with spaces, line breaks or commas between. Raises InputError."""
    with reading(path):
        text = plain_file(path).read_text(encoding="utf-8-sig")
    return list(_values(text, path))


def _values(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """By the line each begins in."""
    line, counted, at = 1, 0, _between(text, 0)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = json_at(text, at)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else error
            if isinstance(error, json.JSONDecodeError):  # which counts lines from the beginning of the file
                later = f"line {error.lineno}, " if error.lineno != line else ""
                reason = f"{error.msg}, at {later}column {error.colno}"
            raise InputError(f"{path}:{line}: not JSON: {reason}") from None
        yield f"{path}:{line}", value
        at = _between(text, end)


def _between(text: str, at: int) -> int:
    """Where the next value begins."""
    found = SEPARATOR.match(text, at)
    return found.end() if found else at


class PromptForm(Protocol):
    """How one line of a file becomes a prompt. A form is registered under the key that tells a line of its own.

    One that has a parameter `folder` is given that of the file, to which names of pictures are relative.
    """

    def __call__(self, value: dict[str, Any], identifier: str) -> InterleavedDocument | str:
        """Raises InputError (without the place, which is added) for a line that is none of its form."""
        ...


@register("prompt", "prompt")
def text_prompt(value: dict[str, Any], identifier: str, folder: Path) -> InterleavedDocument:
    """{"prompt": "text"}, maybe with "image" or "images" before it, "id", and "meta" for rewards"""
    check_keys(value, KEYS)
    text, meta = value["prompt"], value.get("meta", {})
    if not isinstance(text, str):
        raise InputError(f"`prompt` is {kind_of(text)}, no text")
    if not isinstance(meta, dict):
        raise InputError(f"`meta` is {kind_of(meta)}, no object")
    if "image" in value and "images" in value:
        raise InputError("`image` and `images` stand in one line; give one")
    names = [value["image"]] if "image" in value else value.get("images", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError("`image` is the file of a picture or a data URI, `images` a list of them")
    pictures = [_picture(name, folder) for name in names]
    return replace(make_prompt(text, pictures), id=identifier, meta=meta)


def _picture(name: str, folder: Path) -> Path | Image.Image:
    if not name.startswith("data:"):
        return inside(folder, name, "put it below the folder of the prompts")
    try:
        segment = InterleavedDocument.from_json({"segments": [{"type": "image", "image": name}]}).segments[0]
    except ValueError as error:
        raise InputError(f"a data URI of a picture: {error}") from None
    assert isinstance(segment, ImageSegment) and segment.image is not None
    return segment.image


def inside(folder: Path, name: str, remedy: str) -> Path:
    """The file of that name, which need not exist. Raises InputError where it lies outside the folder."""
    path = folder / name
    try:
        lies_there = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links
        raise InputError(f"picture {name[:80]!r} is no name of a file") from None
    if not lies_there:
        raise InputError(f"picture {name!r} is outside {folder}; {remedy}")
    return path


def check_keys(value: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises InputError for a key that a form does not read, since what it says would be lost, and for an `id` that is
    none."""
    if type(value.get("id", "")) not in (str, int):
        raise InputError(f"`id` is {kind_of(value['id'])}, neither a text nor a whole number")
    if unknown := [key for key in value if key not in known]:
        hint = did_you_mean(unknown[0], known)
        said = hint or "what rewards are to know of a prompt goes into `meta`" * ("meta" in known)
        raise InputError(f"unknown key {unknown[0]!r}; known: {', '.join(known)}{said and '; '}{said}")


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
    path = Path(place)
    identifier = value.get("id") if isinstance(value, dict) else None
    identifier = str(identifier) if type(identifier) in (str, int) else path.name
    filled = {"folder": path.parent} if "folder" in signature(form).parameters else {}
    try:
        made = form(value, identifier, **filled)
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
