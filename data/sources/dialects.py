"""The dialects of chat with pictures, as one: turns of parts, and the pictures that fill their places in order.

    {"conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ..], "image": "a.jpg"}     LLaVA, EMOVA, OneVision
    {"messages": [{"role": "user", "content": "<image>What?"}, ..], "images": ["a.jpg"]}         ms-swift, LLaMA-Factory
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", ..}]}, ..]}   TRL, OpenAI, Anthropic
    {"texts": [{"user": "What?", "assistant": "A cat."}], "images": [..]}                        Cauldron, FineVision
    {"query": "<image>What?", "response": "A cat.", "history": [[.., ..]]}, {"instruction": .., "output": ..}, ..

What a record says of its own form is read, nothing is guessed: Refused says which rule a record breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...configs.errors import InputError, reading
from ...configs.json_text import parse_json
from .report import Refused, Report

Role = Literal["system", "user", "assistant"]
ROLES: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
}
LISTS = ("messages", "conversations", "conversation", "texts")
PAIRS = (
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Fields of a question and its answer, where a record has no list of turns."""
TURNS = (*LISTS, *(asked for asked, _ in PAIRS))
PICTURES = ("images", "image", "image_path", "image_paths", "img")
SPEECH = re.compile(r"<\|speech_\d+\|>")


class Empty:
    """The place of a picture that the record's list of pictures fills."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that a turn itself names: a path, an address, {"bytes": ..}."""

    value: Any


Part = str | Empty | Reference
EMPTY = Empty()


@dataclass(frozen=True, slots=True)
class Turn:
    role: Role
    parts: tuple[Part, ...]
    learnt: bool = True
    """Of an assistant's: whether the model is to write it."""


def conversation(value: Mapping[str, Any], placeholder: str, pictures: str, report: Report) -> list[Turn]:
    """The turns of a record, every place of a picture filled. Raises Refused.

    placeholder: what stands in a text for a picture. pictures: the field that lists them, by default any that is usual.
    """
    given = references(value, pictures)
    turns = [replace(turn, parts=tuple(_split(turn.parts, placeholder, bool(given)))) for turn in turns_of(value)]
    if not turns:
        raise Refused("no turns", "no message in it")
    text = " ".join(part for turn in turns for part in turn.parts if isinstance(part, str))
    if SPEECH.search(text):
        raise Refused("speech", "units of speech, <|speech_N|>")
    places = sum(part is EMPTY for turn in turns for part in turn.parts)
    if given and not places:
        report.note("placed first")
        first = next((at for at, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = replace(turns[first], parts=(*[EMPTY] * len(given), *turns[first].parts))
    elif places != len(given):
        raise Refused("placeholder mismatch", f"{places} places for {len(given)} pictures")
    elif not given and placeholder in text:
        if any(_leads(part, placeholder) for turn in turns for part in turn.parts):
            raise Refused("missing", f"{placeholder} stands before a text, and the record names no picture")
        report.note("placeholder as text")
    rest = iter(given)
    return [
        replace(turn, parts=tuple(Reference(next(rest)) if part is EMPTY else part for part in turn.parts))
        for turn in turns
    ]


def speaks(value: Mapping[str, Any]) -> bool:
    """Has a record the fields of some dialect?"""
    if any(isinstance(_json(value.get(name)), list) for name in LISTS):
        return True
    return any(value.get(asked) is not None and value.get(said) is not None for asked, said in PAIRS)


def references(value: Mapping[str, Any], column: str = "") -> list[Any]:
    """The pictures that a record lists: a path or a list of them, or what a parquet file holds. None is none."""
    names = (column,) if column else PICTURES
    found = next((value[name] for name in names if value.get(name)), None)
    listed = found if isinstance(found, list | tuple) else [found]
    return [one for one in listed if one is not None and one != ""]


def turns_of(value: Mapping[str, Any]) -> list[Turn]:
    """Raises Refused for a role that is none and for a form that is none."""
    for name in LISTS:
        listed = _json(value.get(name))
        if isinstance(listed, list) and listed:
            return [turn for message in listed for turn in _turns_of_message(message)]
    question, answer = next((pair for pair in PAIRS if value.get(pair[0]) is not None), ("", ""))
    if not question or not isinstance(value[question], str | list):
        fields = ", ".join(sorted(map(str, value))[:12])
        raise Refused("no turns", f"has {fields}; expected one of {', '.join(LISTS)}, or {_shown_pairs()}")
    system = value.get("system")
    turns: list[Turn] = []
    if isinstance(system, str) and system:
        turns.append(Turn("system", (system,)))
    for asked, said in _history(value):
        turns += [Turn("user", (asked,)), Turn("assistant", (said,))]
    asked, more = value[question], value.get("input") if question == "instruction" else None
    if isinstance(asked, str):
        asked = f"{asked}\n{more}" if isinstance(more, str) and more.strip() else asked
        turns.append(Turn("user", (asked,)))
    else:
        turns += [turn for message in asked for turn in _turns_of_message(message)]
    said = next((value[reply] for first, reply in PAIRS if first == question and value.get(reply) is not None), None)
    if isinstance(said, str):
        turns.append(Turn("assistant", (said,)))
    elif isinstance(said, list):
        turns += [turn for message in said for turn in _turns_of_message(message)]
    return turns


def _shown_pairs() -> str:
    return ", ".join(f"{asked} and {said}" for asked, said in PAIRS)


def _history(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for pair in value.get("history") or ():
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Refused("no turns", "`history` is a list of [question, answer]")
        yield pair[0], pair[1]


def _turns_of_message(message: Any) -> Iterator[Turn]:
    """One; of {"user": .., "assistant": ..} two."""
    if not isinstance(message, Mapping):
        raise Refused("no turns", f"a message is a {type(message).__name__}, no object")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if role is None:
        pairs = [name for name, text in message.items() if name in ROLES and text is not None]
        if not pairs:
            raise Refused("no turns", f"a message has {', '.join(sorted(map(str, message)))}, and no role")
        for name in pairs:
            yield Turn(ROLES[name], tuple(_parts(message[name])))
        return
    if str(role).lower() not in ROLES:
        raise Refused("unknown role", f"{str(role)[:40]!r} is none of {', '.join(ROLES)}")
    off = message.get("loss") is False or message.get("loss_scale") in (0, 0.0)
    yield Turn(ROLES[str(role).lower()], tuple(_parts(content)), not off)


def _parts(content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield _part(part)
    elif isinstance(content, Mapping):
        yield _part(content)
    else:
        raise Refused("no turns", f"a message whose content is a {type(content).__name__}")


def _part(part: Any) -> Part:
    """Of a list of parts: TRL's, OpenAI's of both interfaces, Anthropic's."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return _Whole(part["text"])
    if kind in ("image", "image_url", "input_image"):
        for name in ("image", "image_url", "url", "path", "source"):
            named = part.get(name)
            if isinstance(named, Mapping) and named.get("type") == "base64":
                return Reference(f"data:{named.get('media_type', '')};base64,{named.get('data', '')}")
            if isinstance(named, Mapping) and "bytes" not in named:
                named = named.get("url") or named.get("path")
            if named:
                return Reference(named)
        return EMPTY
    what = repr(kind) if isinstance(part, Mapping) else f"a {type(part).__name__}"
    raise Refused("unknown part", f"a part of type {what}; texts and images are known")


class _Whole(str):
    """A text that is a part of its own: a placeholder in it is a word."""


def _split(parts: tuple[Part, ...], placeholder: str, pictures: bool) -> Iterator[Part]:
    for part in parts:
        if not isinstance(part, str) or isinstance(part, _Whole) or not pictures or placeholder not in part:
            yield part
            continue
        for at, text in enumerate(part.split(placeholder)):
            if at:
                yield EMPTY
            yield text


def _leads(part: Part, placeholder: str) -> bool:
    """Does the placeholder stand on a line of its own, as it does where a picture belongs?"""
    return isinstance(part, str) and placeholder in map(str.strip, part.split("\n"))


def _json(value: Any) -> Any:
    """Some tables hold their messages as a string."""
    if isinstance(value, str) and value[:1] == "[":
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


# ---- LLaMA-Factory's list of data sets ----


def factory_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """What `dataset_info.json` says of a data set; None where there is no such file.

    Raises InputError where it does not list the data set, or lists several and none is named.
    """
    file = folder / "dataset_info.json"
    if not file.is_file():
        return None
    with reading(file):
        listed = parse_json(file.read_text(encoding="utf-8"))
    known = {key: value for key, value in listed.items() if isinstance(value, dict) and "file_name" in value}
    if not known:
        return None
    if not name and len(known) == 1:
        name = next(iter(known))
    if name not in known:
        raise InputError(f"{file}: lists {', '.join(known)}; name one by --set dataset=NAME")
    return known[name]


def of_factory(value: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A record with LLaMA-Factory's own names of columns and roles for those that its entry says."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    back = {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        **{name: name for name in ("messages", "images", "system", "history")},
    }
    sharegpt = entry.get("formatting") == "sharegpt"
    renamed = {back[name]: value[column] for name, column in columns.items() if name in back and column in value}
    if not sharegpt:
        return {**value, **renamed}
    messages = renamed.get("messages", value.get("conversations"))
    names = {tags.get(f"{role}_tag", usual): role for role, usual in (("user", "human"), ("assistant", "gpt"))}
    names |= {tags.get("system_tag", "system"): "system"}
    who, what = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    if isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages):
        messages = [{"role": names.get(m.get(who), m.get(who)), "content": m.get(what)} for m in messages]
    return {**{k: v for k, v in value.items() if k not in LISTS}, **renamed, "messages": messages}
