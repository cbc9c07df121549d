"""Reads one YAML file into a mapping, strictly, and with the scalars people mean."""

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import InputError, fault_of_disk

DEEPEST = 50
"""Lists and mappings inside one another."""
MOST_VALUES = 100_000
"""Values of a file, those that an alias (`*name`) repeats counted each time: ten lines can stand for millions."""
LARGEST_FILE = 2**20
"""Bytes."""


def read_yaml(path: Path, source: str | None = None) -> dict[str, Any]:
    """The mapping in a YAML file; every fault is an `InputError` that begins with `source` (default: the path)."""
    source = source or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise InputError(f"{source}: more than {LARGEST_FILE:,} bytes; no configuration is that long")
        mapping = parse_yaml(data.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read: {fault_of_disk(error) or error}") from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise InputError(f"{source}:{line} {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{source}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(mapping, dict):
        what = "the file is empty" if mapping is None else f"found a {type(mapping).__name__}"
        raise InputError(f"{source}: expected a mapping of `key: value` lines, but {what}")
    return mapping


def parse_yaml(text: str) -> Any:
    """The value that a text in YAML stands for. Raises yaml.YAMLError alone, whatever is in it: a tag that does not
    fit its value (`!!int x`), a value that holds itself, one that aliases blow up, nesting without end."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"nested more than {DEEPEST} deep") from None
    finally:
        loader.dispose()


def scalar(text: str) -> Any:
    """A flag's value read as YAML (`0.5`, `null`, `[1, 2]`, `{text: 1}`); the bare text where it is no YAML."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def _measure(node: yaml.Node, sizes: dict[yaml.Node, int], depth: int) -> int:
    """How many values a node stands for, aliases followed. sizes: what is known, 0 for nodes under way."""
    size = sizes.get(node)
    if size is None:
        if depth > DEEPEST:
            raise _fault(f"nested more than {DEEPEST} deep", node)
        sizes[node] = 0
        size = sizes[node] = 1 + sum(_measure(inner, sizes, depth + 1) for inner in _inside(node))
    if size == 0:
        raise _fault("a value that holds itself", node)
    if size > MOST_VALUES:
        raise _fault(f"more than {MOST_VALUES:,} values, each alias counted", node)
    return size


def _inside(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [inner for pair in node.value for inner in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _fault(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """`no` is a word (the field's type decides), `1e-3` a number, a date a string, a key given twice a fault."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except Exception as error:  # PyYAML's constructors take it that a tag fits what it stands before
            shown = node.value if isinstance(node, yaml.ScalarNode) else ""
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise _fault(f"{shown!r} is no {node.tag.rpartition(':')[2]}", node) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!map x` is none
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
