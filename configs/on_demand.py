"""limner's modules on demand: a statement runs when a name that it defines is first asked for, and no library is there.

A command's `main` reads its options before it does anything else, so `--help` needs few of the modules that it imports
and nothing of torch or transformers. Here `main` runs as it stands in its source: what the options say of themselves is
written once, where they are, and their help is ready in a tenth of a second.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.util
import sys
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = __name__.partition(".")[0]
BOTTOM = f"{PACKAGE}.configs"
"""What lies there is imported: it needs nothing heavy, and what `main` raises is caught outside."""


def on_demand(name: str) -> Any:
    """A module of limner by its whole name. It stands apart from the one that `import` gives."""
    if f"{name}.".startswith(f"{BOTTOM}."):
        return importlib.import_module(name)
    key = f"{name} on demand"
    if key not in sys.modules:
        module: Any = Module(name, key)
        sys.modules[key] = module  # dataclasses, typing and inspect look a class's module up there
    return sys.modules[key]


class Module:
    """Looks like a module, and defines what it is asked for."""

    def __init__(self, name: str, key: str):
        self.__dict__ = Names(name, key)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__[name]
        except KeyError:
            raise AttributeError(f"{self.__name__}: there is no {name}") from None


class Names(dict[str, Any]):
    """The globals of a module: one that is missing is defined first. Functions see them, as Python looks theirs up by
    `[]`; what else a statement needs is defined before it runs."""

    def __init__(self, name: str, key: str):
        self.place, self.package = ROOT.joinpath(*name.split(".")[1:]), name
        file = self.place / "__init__.py"
        if not self.place.is_dir():
            file, self.package = self.place.with_suffix(".py"), name.rpartition(".")[0]
        super().__init__(__name__=key, __package__=self.package, __file__=str(file))
        self["__builtins__"] = {**vars(builtins), "__import__": _import}
        self.statements: dict[str, list[ast.stmt]] = {}
        for statement in _statements(ast.parse(file.read_text(encoding="utf-8"))):
            for defined in _defined(statement):
                self.statements.setdefault(defined, []).append(statement)

    def __missing__(self, name: str) -> Any:
        if name not in self.statements and (self.place / name).with_suffix(".py").is_file():
            return on_demand(f"{self.package}.{name}")
        for statement in self.statements.pop(name, ()):
            for needed in _needed(statement):
                if needed not in self and needed in self.statements:
                    self[needed]  # defines it
            code: Any = ast.Module([ANNOTATIONS_WAIT, statement], [])
            exec(compile(code, self["__file__"], "exec", dont_inherit=True), self)
        if name not in self:
            raise KeyError(name)
        return self[name]


class StandIn(ABCMeta):
    """The type of what stands in for a library's classes and functions: to inherit from, to decorate with, to name in
    a type hint. All that can be had of it stands in, too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stand_in(name, cls.__module__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls if cls.__bases__ == (object,) else super().__call__(*args, **kwargs)  # a class of ours that inherits


ANNOTATIONS_WAIT = ast.parse("from __future__ import annotations").body[0]


def _stand_in(name: str, module: str) -> StandIn:
    return StandIn(name, (), {"__module__": module})


def _import(
    name: str, names: Any = None, local: Any = None, wanted: Sequence[str] | None = None, level: int = 0
) -> Any:
    """`import` within these modules: limner's on demand, the standard library's as they are, others stood in for."""
    full = importlib.util.resolve_name("." * level + name, names["__package__"])
    top = full.partition(".")[0]
    if top in sys.stdlib_module_names:
        return __import__(full, names, local, wanted or ())
    return on_demand(full) if top == PACKAGE else _stand_in(full, full)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Those of a module, each name that it imports in one of its own."""
    for statement in tree.body:
        match statement:
            case ast.ImportFrom(module, aliases, level):
                for alias in aliases:
                    yield ast.copy_location(ast.ImportFrom(module, [alias], level), statement)
            case _:
                yield statement


def _defined(node: ast.AST) -> Iterator[str]:
    """The names that a statement gives its module."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.alias():
            yield node.asname or node.name.partition(".")[0]
        case ast.Name(name, ast.Store()):
            yield name
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _defined(child)


def _needed(node: ast.AST) -> Iterator[str]:
    """The names that a statement looks up as it runs, or in the type hints of fields: not those within functions."""
    match node:
        case ast.Name():
            yield node.id
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            arguments = (*node.args.defaults, *(default for default in node.args.kw_defaults if default))
            for child in (*getattr(node, "decorator_list", ()), *arguments):
                yield from _needed(child)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _needed(child)
