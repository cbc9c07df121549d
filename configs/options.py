"""The options of what the registry holds: which there are, their values checked, and how people are told of them.

The options of a class are the parameters of its constructor, so that a dataclass needs no more than its fields; of a
function those that its kind does not fill. Type hints say what a value may be, `Annotated[int, Range(1)]` its bounds,
the docstring under a dataclass's field what it does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import NoneType
from typing import Any, get_args, get_type_hints

from .errors import InputError
from .registry import Found
from .schema import Place, Range, bare, build, default_of, docs_of, fields_of, kind_name, plain

Shared = Mapping[Any, Callable[[Any, str], Any]]
"""For options of these types a configuration gives the name of something shared: (name or None, place) to the thing."""


def make(found: Found, given: Mapping[str, Any], place: str, shared: Shared | None = None) -> Any:
    """An instance of a registered class, its options checked. Raises InputError naming the option at fault."""
    options, values = options_of(found.thing), {**given, **found.given}
    if twice := [name for name in found.given if name in given]:
        raise InputError(f"{place}.{twice[0]}: stands in the name {found.name!r} already")
    for field in dataclasses.fields(options):
        kinds = {fields_of(options).get(field.name), *get_args(fields_of(options).get(field.name))} - {NoneType}
        optional = field.default is not dataclasses.MISSING and field.name not in values
        for kind in kinds & {*(shared or {})} if not optional else ():
            values[field.name] = (shared or {})[kind](values.get(field.name), f"{place}.{field.name}")
    try:
        checked = build(options, values, Place(place))
        if options is found.thing:
            return checked
        return found.thing(**{field.name: getattr(checked, field.name) for field in dataclasses.fields(options)})
    except Exception as error:
        if isinstance(error, InputError) or ":" not in found.name:
            raise
        raise InputError(f"{place}: raises {type(error).__name__} when it is made: {error}") from error


def options_of(thing: Any, filled: Collection[str] = ()) -> type:
    """The options as a dataclass. filled: parameters that are none, since the caller gives them."""
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        return thing
    maker = thing.__init__ if inspect.isclass(thing) else thing
    if maker is object.__init__:
        return dataclasses.make_dataclass("Options", [])
    hints = get_type_hints(maker, include_extras=True)
    fields: list[Any] = []
    for parameter in list(inspect.signature(maker).parameters.values())[inspect.isclass(thing) :]:
        if parameter.name in filled or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = hints.get(parameter.name, Any)
        if parameter.default is parameter.empty:
            fields.append((parameter.name, kind))
        else:
            fields.append((parameter.name, kind, dataclasses.field(default_factory=partial(_same, parameter.default))))
    return dataclasses.make_dataclass("Options", sorted(fields, key=len))  # those without a default come first


def described(thing: Any, filled: Collection[str] = ()) -> list[dict[str, Any]]:
    """Name, type, range, default and meaning of each option, as JSON values."""
    options = options_of(thing, filled)
    docs = docs_of(options) if options is thing else {}
    rows = []
    for field in (field for field in dataclasses.fields(options) if field.init):
        kind = fields_of(options)[field.name]
        bounds = next((extra for extra in get_args(kind) if isinstance(extra, Range)), None)
        required = field.default is field.default_factory is dataclasses.MISSING
        rows.append(
            {
                "name": field.name,
                "type": kind_name(bare(kind)),
                "required": required,
                "default": None if required else plain(default_of(field)),
                "range": str(bounds) if bounds else None,
                "help": docs.get(field.name, ""),
            }
        )
    return rows


def _same(value: Any) -> Any:
    return value
