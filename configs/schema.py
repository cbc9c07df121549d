"""Values into dataclasses: each is checked against its type hint, at any depth, and a fault names its place."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import re
import reprlib
import textwrap
import types
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from .bounds import LARGEST, REMEDIES, RENAMED, THEIRS, Range, without_effect
from .errors import InputError
from .yaml_file import scalar

T = TypeVar("T")
UNBOUNDED: dict[Any, tuple[Range]] = {int: (LARGEST,), float: (Range(),)}
"""What holds for numbers whose type hint has no bounds."""
FOREIGN = ("transformers", "trl")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Place(NamedTuple):
    """Where a value stands: `warmup/tiny.yaml: rewards.text`."""

    source: str
    """The file, or the flag."""
    path: tuple[str, ...] = ()

    def at(self, key: object) -> "Place":
        return Place(self.source, (*self.path, str(key)))

    def __str__(self) -> str:
        return f"{self.source}: {'.'.join(self.path)}" if self.path else self.source


class Flag(NamedTuple):
    """A value from the command line: it answers for itself in messages, and its text is read as its field asks."""

    name: str
    value: Any


class Patch(dict):
    """A mapping that flags made where the file has none: a `dict` field's other default entries stay."""


def build(cls: type[T], mapping: Mapping[str, Any], where: str | Place, base: T | None = None) -> T:
    """An instance of a dataclass from a mapping; `InputError` for an unknown or missing key and for a wrong type.

    Keys not given keep the values of `base` where there is one (a section's default), else the class's defaults."""
    place = where if isinstance(where, Place) else Place(where)
    if not isinstance(mapping, Mapping):
        raise _expected(f"a mapping ({cls.__name__})", mapping, place)
    mapping = _by_new_names(mapping) if is_foreign(cls) else mapping
    hints, values = fields_of(cls), {}
    for key, value in mapping.items():
        if key not in hints:
            raise unknown_key(key, hints, value.name if isinstance(value, Flag) else str(place.at(key)))
    for field in (field for field in dataclasses.fields(cls) if field.init):  # type: ignore[arg-type]
        if field.name in mapping:
            default = default_of(field) if base is None else getattr(base, field.name)
            values[field.name] = convert(mapping[field.name], hints[field.name], place.at(field.name), default)
        elif base is not None:
            values[field.name] = getattr(base, field.name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise InputError(f"{place.at(field.name)}: missing, and it has no default")
    if "save_strategy" in hints and (reason := _without_effect(cls, mapping, values)):
        name = reason.partition(":")[0]
        flag = name in mapping and isinstance(mapping[name], Flag)
        raise InputError(f"--{reason}" if flag else f"{place}: {reason}")
    try:
        return cls(**values)
    except (ValueError, TypeError, ImportError) as error:  # the class's own checks, TrainingArguments' included
        text = " ".join(str(error).split())
        text = next((remedy for said, remedy in REMEDIES.items() if said in text), text)
        named = {*re.findall(r"\w+", text)}
        flags = {key: value.name for key, value in mapping.items() if isinstance(value, Flag) and key in named}
        for key in flags:
            text = text.removeprefix(f"{key}: ")
        raise InputError(f"{', '.join(flags.values()) or place}: {text}") from error


def _by_new_names(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A setting under its old name is that under its new one; of both a flag holds. Raises InputError where they
    differ otherwise."""
    found = dict(mapping)
    for old, new in ((old, new) for old, new in RENAMED.items() if old in mapping):
        given = found.pop(old)
        if new not in mapping or (isinstance(given, Flag) and not isinstance(mapping[new], Flag)):
            found[new] = given
        elif isinstance(given, Flag) == isinstance(mapping[new], Flag) and _read(given) != _read(mapping[new]):
            raise InputError(f"{old}: is called {new} now, which is given as well, and differs; give {new} alone")
    return found


def _without_effect(cls: type, mapping: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Asked for is what differs from the default, and a flag of how often to save; not what a file says of saving where
    a flag turns it off."""
    defaults = {field.name: default_of(field) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    flags = {name for name, value in mapping.items() if isinstance(value, Flag)}
    asked = {name for name in values if values[name] != defaults[name]} | (flags & {"save_steps"})
    asked = asked & flags if "save_strategy" in flags else asked
    return without_effect({**defaults, **values}, asked)


def _read(value: Any) -> Any:
    text = value.value if isinstance(value, Flag) else value
    return scalar(text) if isinstance(text, str) else text


def convert(value: Any, kind: Any, place: Place, default: Any = None) -> Any:
    """The value as its type hint asks, or `InputError`. `default` is what stands there when nothing is given."""
    if isinstance(value, Flag):
        return _convert_flag(value, kind, default)
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        plain_number = args[0] in UNBOUNDED
        found = _convert_plain(value, args[0], place) if plain_number else convert(value, args[0], place, default)
        return _within(found, args[1:], place)
    if origin in (Union, types.UnionType):
        return _convert_union(value, kind, place, default)
    if origin is Any or origin is object:
        return _read_flags(value)
    if origin is Literal:
        for choice in args:
            if type(choice) is type(value) and choice == value:
                return choice
        raise _expected(f"one of {', '.join(map(str, args))}", value, place, near=args)
    if isinstance(value, str) and hasattr(origin, "named"):  # a thing that can be had by its name
        return _named(origin, value, place)
    if dataclasses.is_dataclass(origin):
        at = default if isinstance(default, origin) else None  # type: ignore[arg-type]  # `float | Section`: a number
        return value if isinstance(value, origin) else build(origin, value, place, at)  # type: ignore[arg-type]
    if issubclass(origin, Enum):
        choices = {member.value: member for member in origin}
        if isinstance(value, origin):
            return value
        if isinstance(value, Hashable) and value in choices:
            return choices[value]
        raise _expected(f"one of {', '.join(map(str, choices))}", value, place, near=choices)
    if issubclass(origin, Mapping):
        return _convert_mapping(value, args or (Any, Any), place, default)
    if issubclass(origin, list | tuple):
        return _convert_items(value, origin, args, place)
    return _within(_convert_plain(value, origin, place), UNBOUNDED.get(origin, ()), place)


def unknown_key(key: object, names: Iterable[str], where: str) -> InputError:
    """The error for a key that no field has, with the nearest names."""
    names = list(names)
    known = "see --help-all for all keys" if len(names) > 20 else f"known: {', '.join(sorted(names))}"
    return InputError(f"{where}: unknown key; {did_you_mean(str(key), names) or known}")


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """A question with the nearest names; empty where none is near."""
    near = difflib.get_close_matches(word, list(names), n=2)
    return f"did you mean {' or '.join(near)}?" if near else ""


def field_path(path: Sequence[str], kind: Any) -> list[str]:
    """A flag's path into a value of this type, as its fields are spelled (`text-plan` is text_plan); the keys of a
    mapping stay as they are, and one with a colon, a version or a file of YAML keeps its dots:
    `my_rewards.py:Brevity`, `judge/helpfulness.v1`, `judge/mine.yaml`."""
    if not path:
        return []
    if is_mapping(kind) and (end := max(at * _ends_a_key(word, path[0]) for at, word in enumerate(path))):
        path = [".".join(path[: end + 1]), *path[end + 1 :]]
    if section := section_of(kind):
        name = path[0].replace("-", "_")
        return [name, *field_path(path[1:], fields_of(section).get(name, Any))]
    return [path[0], *field_path(path[1:], (get_args(kind) or (Any,))[-1])]


def _ends_a_key(word: str, first: str) -> bool:
    return ":" in word or ("/" in first and re.fullmatch(r"v\d+|yaml", word) is not None)


@cache
def fields_of(cls: type) -> dict[str, Any]:
    """Name to type hint of what can be given. Not `field.type`: HfArgumentParser rewrites that in place."""
    hints = get_type_hints(cls, include_extras=True)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}
    if is_foreign(cls):
        kinds |= {name: Annotated[kinds[name], bounds] for name, bounds in THEIRS.items() if name in kinds}
    return kinds


def is_foreign(cls: type) -> bool:
    """Whether a dataclass is one of transformers or TRL, or inherits from one."""
    return any(base.__module__.partition(".")[0] in FOREIGN for base in cls.__mro__)


def check_ranges(instance: Any, section: str = "") -> None:
    """Holds a dataclass that Python code makes as well to the bounds in its type hints, which `build` checks for files
    and flags. Raises InputError that begins with the field, or `section.field`."""
    for name, kind in fields_of(type(instance)).items():
        if bounds := bounds_of(kind):
            _within(getattr(instance, name), (bounds,), Place(f"{section}.{name}" if section else name))


def bounds_of(kind: Any) -> Range | None:
    """The bounds in a type hint, also of `OneOrMore | None`."""
    if get_origin(kind) is Annotated:
        return next((extra for extra in get_args(kind) if isinstance(extra, Range)), None)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
    return next(filter(None, map(bounds_of, options)), None)


@cache
def docs_of(cls: type) -> dict[str, str]:
    """What the docstring under each field says of it; a field without one is left out."""
    docs = {}
    for ancestor in (one for one in reversed(cls.__mro__) if inspect.get_annotations(one)):  # others have no fields
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(ancestor))).body[0]
        for field, text in pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(doc))):
                    docs[name] = inspect.cleandoc(doc)
    return docs


def default_of(field: dataclasses.Field) -> Any:
    """A field's default, None where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def section_of(kind: Any) -> type | None:
    """The dataclass of a section, `X` of a hint `X` or `X | None`; None for any other hint."""
    kind = bare(kind)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)  # type: ignore[return-value]


def bare(kind: Any) -> Any:
    """A type hint without what `Annotated` adds to it."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def is_structured(kind: Any) -> bool:
    """True for what argparse cannot read from one word: sections, mappings, tuples, lists of those."""
    kind = bare(kind)
    origin, args = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return str not in args and any(is_structured(arg) for arg in args)
    if origin is list:
        return any(is_structured(arg) for arg in args)
    return dataclasses.is_dataclass(origin) or (isinstance(origin, type) and issubclass(origin, Mapping | tuple))


def is_mapping(kind: Any) -> bool:
    """True for `dict[str, X]`."""
    origin = get_origin(bare(kind)) or bare(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def plain(value: Any) -> Any:
    """The value in YAML's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    for scalar_type in (bool, int, float, str):
        if isinstance(value, scalar_type):
            return scalar_type(value)
    return value if value is None else str(value)


def _convert_flag(flag: Flag, kind: Any, default: Any) -> Any:
    """A flag's text read as YAML (`0.5`, `null`, `{text: 1}`) where its field takes that, else as it stands."""
    place = Place(flag.name)
    if isinstance(flag.value, list):
        return convert([Flag(flag.name, item) for item in flag.value], kind, place, default)
    if not isinstance(flag.value, str) or not flag.value:
        return convert(flag.value, kind, place, default)
    try:
        return convert(scalar(flag.value), kind, place, default)
    except InputError as error:
        try:
            return convert(flag.value, kind, place, default)
        except InputError:
            raise error from None


def _read_flags(value: Any) -> Any:
    """The value, with what flags put inside it (`--rewards.structure.unit TI`) read as YAML."""
    if isinstance(value, dict):
        return {key: convert(item, Any, Place("")) for key, item in value.items()}
    return [convert(item, Any, Place("")) for item in value] if isinstance(value, list) else value


def _named(kind: Any, name: str, place: Place) -> Any:
    try:
        return kind.named(name)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _within(value: Any, extras: tuple[Any, ...], place: Place) -> Any:
    """Where the value is a number, which it need not be (`float | None`, `float | Schedule`)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for bounds in (extra for extra in extras if isinstance(extra, Range)):
            if not bounds.holds(value):
                raise _expected(bounds.words, value, place)
    return value


def _convert_union(value: Any, kind: Any, place: Place, default: Any) -> Any:
    members = [arg for arg in get_args(kind) if arg is not types.NoneType]
    if value is None and len(members) < len(get_args(kind)):
        return None
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members):
        members = [member for member in members if member is not str]  # transformers: the enum, or its value
    if len(members) == 1:
        return convert(value, members[0], place, default)
    for member in members:
        try:
            return convert(value, member, place, default)
        except InputError:
            continue
    raise _expected(" or ".join(kind_name(bare(member)) for member in members), value, place)


def _convert_mapping(value: Any, args: tuple[Any, ...], place: Place, default: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        example = f", such as '{{{value}: 1}}'" if isinstance(value, str) and value else ""
        raise _expected(f"a mapping{example}", value, place)
    entries = default or {}
    given = {
        convert(key, args[0], place): convert(item, args[1], place.at(key), entries.get(key))
        for key, item in value.items()
    }
    return {**entries, **given} if isinstance(value, Patch) else given


def _convert_items(value: Any, origin: type, args: tuple[Any, ...], place: Place) -> Any:
    if not isinstance(value, list | tuple):
        raise _expected("a list", value, place)
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise _expected(f"a list of {len(args)}", value, place)
        kinds = args
    else:
        kinds = (args[0] if args else Any,) * len(value)
    return origin(
        convert(item, kind, place.at(index)) for index, (item, kind) in enumerate(zip(value, kinds, strict=True))
    )


def _convert_plain(value: Any, kind: type, place: Place) -> Any:
    """Numbers, words and whatever else a class can be asked about; a bool is no number."""
    if kind is bool and isinstance(value, str) and value.lower() in WORDS:
        return WORDS[value.lower()]
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and not (kind in (int, float) and isinstance(value, bool)):
        return value
    raise _expected(kind_name(kind), value, place)


def _expected(what: str, value: Any, place: Place, near: Collection[Any] = ()) -> InputError:
    close = difflib.get_close_matches(str(value), [str(name) for name in near], n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return InputError(f"{place}: expected {what}, got {reprlib.repr(plain(value))}{hint}")


def kind_name(kind: Any) -> str:
    """A type hint in words: `int`, `str | None`, `full | official`."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " | ".join("None" if member is types.NoneType else kind_name(bare(member)) for member in get_args(kind))
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
