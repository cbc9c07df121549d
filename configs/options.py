"""The options of what the registry holds: which there are, their values checked, and how people are told of them.

The options of a class are the parameters of its constructor, so that a dataclass needs no more than its fields; where
one of them is called `config` and is a dataclass, those of that. Of a function they are the parameters that its kind
does not fill. Type hints say what a value may be, `Annotated[int, Range(1)]` its bounds, the docstring under a
dataclass's field what it does.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from .errors import InputError
from .registry import Found
from .schema import Place, bare, bounds_of, build, default_of, docs_of, fields_of, kind_name, plain

CONFIG = "config"
Shared = Mapping[Any, Callable[[Any, str], Any]]
"""For options of these types a configuration gives the name of something shared: (name or None, place) to the thing."""


def make(
    found: Found,
    given: Mapping[str, Any],
    place: str,
    shared: Shared | None = None,
    filled: Mapping[str, Any] | None = None,
) -> Any:
    """An instance of a registered class, its options checked.

    filled: what the caller gives beside the options; a class gets those of them that its constructor names. Raises
    InputError naming the option at fault.
    """
    filled = filled or {}
    options, values = options_of(found.thing, filled, place), {**given, **found.given}
    if twice := [name for name in found.given if name in given]:
        raise InputError(f"{place}.{twice[0]}: stands in the name {found.name!r} already")
    try:
        checked = check(options, values, place, shared)
        if options is found.thing:
            return checked
        taken = {name: filled[name] for name in inspect.signature(found.thing).parameters if name in filled}
        if options is config_of(found.thing):
            return found.thing(**taken, config=checked)
        return found.thing(**taken, **{name: getattr(checked, name) for name in fields_of(options)})
    except Exception as error:
        if isinstance(error, InputError) or ":" not in found.name:
            raise
        raise InputError(f"{place}: raises {type(error).__name__} when it is made: {error}") from error


def check(options: type, given: Mapping[str, Any], place: str, shared: Shared | None = None) -> Any:
    """An instance of the dataclass of options, what is shared in place of its name. Raises InputError like `make`."""
    values, shared = {**given}, shared or {}
    for field in dataclasses.fields(options):
        hint = fields_of(options).get(field.name)
        required = field.default is field.default_factory is dataclasses.MISSING
        for kind in [kind for kind in shared if kind in (hint, *get_args(hint))]:
            if required or values.get(field.name) is not None or default_of(field) is not None:
                values[field.name] = shared[kind](values.get(field.name), f"{place}.{field.name}")
    return build(options, values, Place(place))


def options_of(thing: Any, filled: Collection[str] = (), place: str = "") -> type:
    """The options as a dataclass. filled: parameters that are none, since the caller gives them.

    Raises InputError, beginning with the place, where the type hint of an option names what its module does not have.
    """
    try:
        options = _options_of(thing, filled)
        fields_of(options)
    except NameError as error:
        raise InputError(
            f"{place or thing.__qualname__}: the type hint of an option cannot be read: {error}; import it at the top"
        ) from error
    return options


def _options_of(thing: Any, filled: Collection[str]) -> type:
    if is_own_dataclass(thing):
        if not {field.name for field in dataclasses.fields(thing)} & {*filled}:
            return thing
        kept = [field for field in dataclasses.fields(thing) if field.init and field.name not in filled]
        return _dataclass([(field.name, fields_of(thing)[field.name], _default(field)) for field in kept])
    if (config := config_of(thing)) is not None:
        return config
    maker = thing.__init__ if inspect.isclass(thing) else thing
    if maker is object.__init__:
        return _dataclass([])
    written = {name: hint for name, hint in maker.__annotations__.items() if name not in (*filled, "return")}
    names = getattr(inspect.unwrap(maker), "__globals__", {})
    hints = get_type_hints(SimpleNamespace(__annotations__=written), names, include_extras=True)
    parameters = list(inspect.signature(maker).parameters.values())[inspect.isclass(thing) :]
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kept = [p for p in parameters if p.name not in filled and p.kind not in starred]
    return _dataclass(
        [(p.name, hints.get(p.name, Any), None if p.default is p.empty else partial(_same, p.default)) for p in kept]
    )


def is_own_dataclass(thing: Any) -> bool:
    """Decorated itself: a class that inherits from a dataclass may have a constructor of its own."""
    return inspect.isclass(thing) and "__dataclass_params__" in vars(thing)


def config_of(thing: Any) -> type | None:
    """The dataclass of a class that takes its options as one `config`."""
    if not inspect.isclass(thing) or CONFIG not in inspect.signature(thing).parameters:
        return None
    kind = get_type_hints(thing.__init__).get(CONFIG)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def described(thing: Any, filled: Collection[str] = ()) -> list[dict[str, Any]]:
    """Name, type, range, default and meaning of each option, as JSON values."""
    options = options_of(thing, filled)
    documented = thing if is_own_dataclass(thing) else config_of(thing)
    docs = docs_of(documented) if documented else {}
    rows = []
    for field in (field for field in dataclasses.fields(options) if field.init):
        kind = fields_of(options)[field.name]
        bounds = bounds_of(kind)
        required = field.default is field.default_factory is dataclasses.MISSING
        rows.append(
            {
                "name": field.name,
                "type": kind_name(bare(kind)),
                "required": required,
                "default": None if required else _shown(default_of(field)),
                "range": str(bounds) if bounds else None,
                "help": docs.get(field.name, ""),
            }
        )
    return rows


def _shown(default: Any) -> Any:
    """As a JSON value; of what can be had by its name, that."""
    identity = getattr(default, "identity", "")
    return identity.partition("@")[0] if hasattr(default, "named") and identity else plain(default)


def _dataclass(fields: list[tuple[str, Any, Callable[[], Any] | None]]) -> type:
    """Of (name, type, default or None); those without a default come first, as they must."""
    made: list[Any] = [(name, kind) for name, kind, default in fields if default is None]
    made += [(n, kind, dataclasses.field(default_factory=default)) for n, kind, default in fields if default]
    return dataclasses.make_dataclass("Options", made)


def _default(field: dataclasses.Field) -> Callable[[], Any] | None:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory
    return None if field.default is dataclasses.MISSING else partial(_same, field.default)


def _same(value: Any) -> Any:
    return value
