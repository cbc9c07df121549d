"""Judge prompts in somebody's Python file, such as a benchmark's own scorer: read from its syntax tree, nothing is run.

Each text gets the names it stands under, joined by dots: variables, keys of a dict, functions, the words that an `if`
or a `case` compares with. What is filled in (f-strings, `str.format`) stays as a place, `{input}`.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...configs.errors import InputError, reading
from ...configs.files import plain_file

SHORTEST = 80
"""Characters of a text that can be a prompt; what is shorter is a label."""
QUESTION = re.compile(r"input|question|instruction|prompt|context|request|query", re.IGNORECASE)
ANSWER = re.compile(r"output|answer|response|prediction|generat", re.IGNORECASE)
PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    names: str
    """Under which it stands in the file, `A + B` where it is made of two."""
    text: str
    """With the places {prompt} and {answer}."""


def read_prompts(path: Path, patterns: Mapping[str, str], chosen: Mapping[str, str]) -> tuple[dict[str, Prompt], str]:
    """The prompt for each of some keys, and the file's sha256.

    patterns: regular expression of each key, looked for in a text's names in small letters, with spaces between words.
    chosen: names of the text of a key instead, `A + B` for two with a blank line between. Raises InputError where a
    key has no text or several, naming those there are.
    """
    with reading(path):
        data = plain_file(path).read_bytes()
        found: dict[str, str] = {}
        for name, text in _texts(ast.parse(data).body, (), {}):
            found[name if found.get(name, text) == text else f"{name}.{sum(n.startswith(name) for n in found)}"] = text
    prompts = {key: _prompt(path, key, chosen.get(key, ""), patterns[key], found) for key in patterns}
    return prompts, hashlib.sha256(data).hexdigest()


def _prompt(path: Path, key: str, chosen: str, pattern: str, found: Mapping[str, str]) -> Prompt:
    if chosen:
        names = [name.strip() for name in chosen.split("+")]
        if unknown := [name for name in names if name not in found]:
            raise InputError(f"{path}: no text is called {unknown[0]!r}; there are {', '.join(found) or 'none'}")
    else:
        long = {name: text for name, text in found.items() if len(text) >= SHORTEST}
        names = [name for name in long if re.search(pattern, _words(name))]
        if len({long[name] for name in names}) != 1:
            what = f"{', '.join(names)} may all be" if names else f"none of {', '.join(long) or 'no texts'} is"
            raise InputError(f"{path}: {what} the prompt of {key}; say which is with prompt_names")
        names = names[:1]
    text = PLACE.sub(_place, "\n\n".join(found[name].strip() for name in names))
    for place, title in (("prompt", "The request"), ("answer", "The answer")):
        if f"{{{place}}}" not in text:
            text += f"\n\n{title}:\n{{{place}}}"
    return Prompt(" + ".join(names), text)


def _place(match: re.Match[str]) -> str:
    """Whose place it is, by its name; another one stays, and is refused by the judge's template."""
    return "{answer}" if ANSWER.search(match[1]) else "{prompt}" if QUESTION.search(match[1]) else match[0]


def _words(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\W_]+", " ", name).lower()


def _texts(body: list[ast.stmt], names: tuple[str, ...], known: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(name)], value=value) | ast.AnnAssign(target=ast.Name(name), value=value):
                if (text := _text(value, known)) is not None:
                    known[name] = text
                yield from _values(value, (*names, name), known)
            case ast.Return(value=value):
                yield from _values(value, names, known)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield from _texts(node.body, (*names, node.name), known)
            case ast.If():
                yield from _texts(node.body, (*names, *_compared(node.test)), known)
                yield from _texts(node.orelse, names, known)
            case ast.Match():
                for one in node.cases:
                    yield from _texts(one.body, (*names, *_compared(one.pattern)), known)
            case ast.For() | ast.While() | ast.With() | ast.Try():
                yield from _texts(node.body, names, known)


def _values(value: ast.expr | None, names: tuple[str, ...], known: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, ast.Dict):
        for key, inner in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield from _values(inner, (*names, str(key.value)), known)
    elif (text := _text(value, known)) is not None:
        yield ".".join(names), text


def _compared(test: ast.AST) -> Iterator[str]:
    return (node.value for node in ast.walk(test) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _text(node: ast.expr | None, known: Mapping[str, str]) -> str | None:
    """None where it is no text, or one that only running the file would tell."""
    match node:
        case ast.Constant(str(text)):
            return text
        case ast.Name(name):
            return known.get(name)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = _text(left, known), _text(right, known)
            return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
        case ast.JoinedStr(values=values):
            return "".join(_text(value, known) or "" for value in values)
        case ast.FormattedValue(value=ast.Name(name)):
            return known.get(name, f"{{{name}}}")
        case ast.FormattedValue(value=value):
            return f"{{{re.sub(r'[^0-9A-Za-z]+', '_', ast.unparse(value)).strip('_')}}}"
        case ast.Call(func=ast.Attribute(value=value, attr="format" | "strip" | "lstrip" | "rstrip")):
            return _text(value, known)
        case ast.Call(func=ast.Attribute(attr="dedent") | ast.Name(id="dedent"), args=[value]):
            return _text(value, known)
    return None
