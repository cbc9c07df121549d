"""Reads one YAML file into a mapping, strictly, and with the scalars people mean."""

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError


def read_yaml(path: Path, source: str | None = None) -> dict[str, Any]:
    """The mapping in a YAML file; every fault is an `InputError` that begins with `source` (default: the path)."""
    source = source or str(path)
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise InputError(f"{source}:{line} {error.problem or error.context}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())  # an OSError says the path too
        raise InputError(f"{source}: cannot be read: {reason}") from error
    if not isinstance(mapping, dict):
        what = "the file is empty" if mapping is None else f"found a {type(mapping).__name__}"
        raise InputError(f"{source}: expected a mapping of `key: value` lines, but {what}")
    return mapping


def scalar(text: str) -> Any:
    """A flag's value read as YAML (`0.5`, `null`, `[1, 2]`, `{text: 1}`); the bare text where it is no YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """`no` is a word (the field's type decides), `1e-3` a number, a date a string, a key given twice a fault."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_DROPPED = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^([tT]rue|[fF]alse)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
