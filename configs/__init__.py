"""Packaged YAML configurations, found by name (`warmup/tiny`), and the reading of any configuration.

A configuration is a few dataclasses: training arguments of transformers or TRL, and plain ones of ours. `parse` fills
them from a YAML file, then from flags; a flag reaches into a section with dots (`--rewards.format 1`), and dashes in it
are underscores. TRL's parser defines the flags, but hands on untouched what was given, and `schema.build` checks every
value: to argparse the YAML values would be defaults, and of those it checks none that is not a string. The help is made
from the docstrings under the fields.
"""

import argparse
import dataclasses
import difflib
import importlib.resources
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml

from .bounds import RENAMED
from .commands import COMMANDS, sentence
from .errors import InputError
from .redaction import without_secrets
from .registry import names_in
from .schema import (
    FOREIGN,
    Flag,
    Patch,
    Place,
    bare,
    build,
    default_of,
    docs_of,
    field_path,
    fields_of,
    is_mapping,
    is_structured,
    plain,
    section_of,
    unknown_key,
)
from .terminal import say
from .whole import write_atomically
from .yaml_file import read_yaml, scalar

__all__ = ["build", "find_config", "packaged_names", "parse", "read_yaml", "resolved", "save_resolved"]

SUFFIXES = (".yaml", ".yml")
DERIVED = {"generation_batch_size": "steps_per_generation", **RENAMED}
"""The libraries fill both of a pair. TRL refuses to read both of the first back; the one kept does not depend on the
number of ranks."""
SECTIONS = ("warmup", "grpo")
"""Of a file of configs/model/: a base model's settings for each command."""
CHECKPOINT = "limner.json"
"""What a checkpoint holds, in the folder of a configuration or above it."""
HUB_CACHE = re.compile(r"/(?:models|datasets|spaces)--[^/]+/(?:snapshots|blobs)/")
UNSET = object()
USAGE = """%(prog)s [--config NAME] [--KEY VALUE ...]

NAME is a packaged configuration or a YAML file; flags win over it, and dots reach into sections."""


def packaged_names() -> list[str]:
    """Every packaged configuration, as `--config` takes it: `warmup/tiny`."""
    root = _packaged_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find_config(name_or_path: str) -> Path:
    """A path to a YAML file wins; else the name of a packaged configuration, with or without `.yaml`."""
    path = Path(name_or_path).expanduser()
    there = path.exists() and not path.is_dir()  # who reads it says what is wrong with a pipe
    if there and path.suffix in SUFFIXES:
        return path
    names = packaged_names()
    name = name_or_path.removesuffix(".yaml")
    if name in names:
        return _packaged_root() / f"{name}.yaml"
    if there:
        raise InputError(f"--config {name_or_path}: not a YAML file (its name must end in .yaml)")
    beside = [str(path.with_suffix(suffix)) for suffix in SUFFIXES if path.with_suffix(suffix).is_file()]
    if beside:
        raise InputError(f"--config {name_or_path}: no such file; did you mean {beside[0]}?")
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.4)
    hint = f"near names: {', '.join(near)}" if near else f"packaged: {', '.join(names) or 'none'}"
    raise InputError(f"--config {name_or_path}: neither a file nor a packaged configuration; {hint}")


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    usage: str = USAGE,
    section: str | None = None,
) -> tuple[Any, ...]:
    """One instance of each dataclass, from `--config NAME` and then `--key value`; faults are `InputError`s.

    No two of the dataclasses may share a field name. A file of several commands (model/janus-pro-1b) has a section for
    each, and `section` says which is read. `--help` and `--help-all` print, under `usage`, and exit."""
    words = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help", "--help-all"} & {*words}:
        say(_help(dataclass_types, prog, usage, "--help-all" in words))
        raise SystemExit(0)
    fields = {name: kind for cls in dataclass_types for name, kind in fields_of(cls).items()}
    parser = _flag_parser(dataclass_types, fields)
    unset = argparse.Namespace(**{action.dest: UNSET for action in parser._actions})  # no default shows through
    namespace, rest = parser.parse_known_args(words, unset)
    given = {name: value for name, value in vars(namespace).items() if value is not UNSET}

    config, source, mapping = given.pop("config", None), "command line", {}
    if config is not None:
        source = config if config.endswith(SUFFIXES) else f"{config}.yaml"
        path = find_config(config)
        mapping = read_yaml(path, source)
        _refuse_foreign_code(path, mapping)
        if section in mapping:
            mapping, source = _section(mapping, section, source), f"{source}, {section}"
    for name, value in given.items():
        _give(mapping, name, Flag(f"--{name}", value), fields[name])
    moved = {key: said for cls in dataclass_types for key, said in getattr(cls, "MOVED", {}).items()}
    for path, flag in _dotted_flags(rest, fields, moved):
        _overlay(mapping, path, flag)

    place = Place(source)
    for key in mapping:
        if key not in fields:
            raise _unknown(key, fields, moved, str(place.at(key)))
    return tuple(
        build(cls, {key: value for key, value in mapping.items() if key in fields_of(cls)}, place)
        for cls in dataclass_types
    )


def save_resolved(path: str | os.PathLike[str], *instances: Any) -> None:
    """Write what a run really used, defaults included, as YAML that `--config` reads again.

    Secrets are left out, at any depth, and named in its second line. The file appears whole or not at all."""
    values, secrets = resolved(*instances)
    text = "# The configuration this run used.\n"
    if secrets:
        names = " ".join(", ".join(secrets).split())
        text += f"# Keys and passwords are not saved; give them again: {names}\n"
    write_atomically(Path(path), text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def resolved(*instances: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings in YAML's own types, without secrets; the secrets, by dotted name)"""
    values: dict[str, Any] = {}
    for instance in instances:
        values |= plain(instance)
    for derived, source in DERIVED.items():
        if values.get(source) is not None:
            values.pop(derived, None)
    return without_secrets(values)


def _refuse_foreign_code(path: Path, mapping: dict[str, Any]) -> None:
    """What came with a checkpoint runs no code of its own. Raises InputError where it names a file or a module."""
    beside = any((folder / CHECKPOINT).is_file() for folder in (*path.absolute().parents,)[:2])
    if (beside or HUB_CACHE.search(path.absolute().as_posix())) and (named := next(names_in(mapping), None)):
        raise InputError(
            f"{path}: names {named}, and a configuration that came with a checkpoint may not; if you trust its code, "
            "copy the configuration into a folder of your own"
        )


def _section(mapping: dict[str, Any], section: str, source: str) -> dict[str, Any]:
    if other := sorted(mapping.keys() - {*SECTIONS}):
        raise unknown_key(other[0], SECTIONS, f"{source}: {other[0]}")
    if not isinstance(mapping[section], dict):
        raise InputError(f"{source}: {section} is no section of settings")
    return mapping[section]


def _packaged_root() -> Path:
    return Path(str(importlib.resources.files(__name__)))


def _help(dataclass_types: Sequence[type], prog: str | None, usage: str, everything: bool) -> str:
    """Our settings, section by section; then that those of transformers or TRL hold as well, or all of them."""
    name = (prog or "").removeprefix("limner ")
    does = sentence(name) if name in COMMANDS else None
    parser = argparse.ArgumentParser(prog=prog, usage=usage, description=does, add_help=False)
    for cls in dataclass_types:
        if dataclasses.is_dataclass(cls):  # what stands in for one of theirs (`on_demand`) is none
            _explain(parser, parser, cls)
    for cls in dataclass_types:
        origin = next((base for base in cls.__mro__ if base.__module__.partition(".")[0] in FOREIGN), None)
        if origin:
            more = "output_dir, max_steps, learning_rate and resume_from_checkpoint among them"
            group = parser.add_argument_group(
                f"all settings of {origin.__module__.partition('.')[0]}.{origin.__name__}",
                more if everything else f"{more}; --help-all lists them",
            )
            for field in dataclasses.fields(cls) if everything else ():
                if field.init and _is_foreign(field):
                    _row(group, field.name, fields_of(cls)[field.name], field.metadata["help"], default_of(field))
    return parser.format_help()


def _explain(parser: argparse.ArgumentParser, group: Any, cls: type, base: Any = None, prefix: str = "") -> None:
    """Rows of a dataclass's fields; a section whose fields say what they are becomes a group of its own."""
    docs, kinds = docs_of(cls), fields_of(cls)
    for field in dataclasses.fields(cls):
        if not field.init or _is_foreign(field):
            continue
        name, doc = f"{prefix}{field.name}", docs.get(field.name, "")
        default = getattr(base, field.name) if isinstance(base, cls) else default_of(field)
        section = section_of(kinds[field.name])
        if section and docs_of(section):
            _explain(parser, parser.add_argument_group(name, doc), section, default, f"{name}.")
        else:
            _row(group, name, kinds[field.name], doc, default)


def _row(group: Any, name: str, kind: Any, doc: str, default: Any) -> None:
    kind = bare(kind)
    choices = f"{{{','.join(map(str, get_args(kind)))}}}" if get_origin(kind) is Literal else "VALUE"
    if default not in (None, "", [], {}):
        doc += f" (default: {default if isinstance(default, str) else json.dumps(plain(default))})"
    group.add_argument(f"--{name}", metavar=choices, help=doc.strip().replace("%", "%%"))


def _is_foreign(field: dataclasses.Field) -> bool:
    """transformers and TRL say in the metadata what a field is, we in the docstring under it."""
    return "help" in field.metadata


def _flag_parser(dataclass_types: Sequence[type], fields: dict[str, Any]) -> argparse.ArgumentParser:
    """TRL's parser as a reader of flags only: it neither converts nor demands, and its faults are `InputError`s."""
    from trl import TrlParser  # pyright: ignore[reportPrivateImportUsage]

    types: list[Any] = list(dataclass_types)
    parser = TrlParser(types, add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    for action in parser._actions:
        if action.dest not in fields:
            continue
        action.required = False
        action.type = None
        if is_structured(fields[action.dest]):
            action.nargs = None

    def error(message: str) -> NoReturn:
        raise InputError(f"command line: {message}")

    parser.error = error  # type: ignore[method-assign]  # argparse's own prints the usage and exits
    return parser


def _unknown(key: str, fields: dict[str, Any], moved: dict[str, str], where: str) -> InputError:
    """moved: keys of before, by what became of them."""
    return InputError(f"{where}: {moved[key]}") if key in moved else unknown_key(key, fields, where)


def _dotted_flags(
    words: Sequence[str], fields: dict[str, Any], moved: dict[str, str]
) -> Iterator[tuple[list[str], Flag]]:
    """`--section.key value` and `--section.key=value`, which argparse leaves over; any other word is a fault."""
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.removeprefix("--").partition("=")
        first, *inside = name.split(".")
        first = first.replace("-", "_")
        path = [first, *field_path(inside, fields.get(first, Any))]
        if not word.startswith("--"):
            raise InputError(f"command line: {word!r} belongs to no flag")
        if len(path) == 1 or not is_structured(fields.get(first, Any)):
            raise _unknown(first, fields, moved, f"--{name}")
        if not equals:
            value = next(remaining, "--")
        if value.startswith("--") and not equals:
            raise InputError(f"--{name}: expected a value after it")
        yield path, Flag(f"--{name}", value)


def _give(mapping: dict[str, Any], name: str, flag: Flag, kind: Any) -> None:
    """A flag in place of what the file says; entries of a mapping (`--rewards '{NAME: 1}'`) beside its others."""
    entries = scalar(flag.value) if is_mapping(kind) and isinstance(flag.value, str) else None
    before = mapping.get(name)
    if not isinstance(entries, dict) or not isinstance(before, (dict, type(None))):
        mapping[name] = flag
        return
    mapping[name] = Patch() if before is None else before
    mapping[name].update({key: Flag(flag.name, value) for key, value in entries.items()})


def _overlay(mapping: dict[str, Any], path: Sequence[str], flag: Flag) -> None:
    """Put a dotted flag into the file's mapping, opening the sections that the file does not have."""
    node: Any = mapping
    for depth, step in enumerate(path):
        key: Any = int(step) if isinstance(node, list) and step.isdecimal() else step
        inside = key in node if isinstance(node, dict) else isinstance(key, int) and key < len(node)
        if not inside and not isinstance(node, dict):
            raise InputError(f"{flag.name}: {'.'.join(path[:depth])} has no part {step}")
        if depth == len(path) - 1:
            node[key] = flag
        elif not inside or node[key] is None:
            node[key] = Patch()
        node = node[key]
