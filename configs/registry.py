"""The registry: what limner brings and what others bring come in by one door, as (kind, name).

    @register("reward", "brevity")      in any room of limner, or of a package with an entry point (`limner.plugins`)
    my_rewards.py:Brevity               a file's class or function, by no more than its place
    my_package.rewards:Brevity          that of an installed module

Registered names are found by reading sources, without importing any: no table lists them, and help stays light. A name
may own a pattern: `judge/TEMPLATE` is asked for as `judge/helpfulness`, and its option `template` gets the rest.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError
from .schema import did_you_mean
from .terminal import say

GROUP = "limner.plugins"
"""Entry points of other packages: each names a module or a package, whose sources are read like our own."""
ON_DEMAND = " on demand"
"""How the modules of `on_demand` end."""
ROOT = Path(__file__).resolve().parents[1]
PACKAGE = __name__.split(".")[0]
NOT_SHIPPED = {"tests", "scripts", "docs", "build", "dist", "runs"}
METHODS = {
    "reward": ("__call__",),
    "benchmark": ("records", "aspects", "tasks", "scores"),
    "source": ("documents",),
    "prompt": ("__call__",),
    "strategy": ("__call__",),
    "family": ("hidden", "text_logits", "image_logits", "parts"),
}
"""What a class of each kind must have."""
NOUNS = {
    "reward": "a reward",
    "benchmark": "a benchmark",
    "source": "a data source",
    "prompt": "a prompt form",
    "strategy": "an answering strategy",
    "family": "a base-model family",
}
FUNCTIONS = ("reward", "prompt", "strategy")
"""Kinds whose class has but one method: a function will do as well."""

T = TypeVar("T")
_marked: dict[tuple[str, str], Any] = {}
_files: dict[Path, PluginFile] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered name, as its source says it."""

    kind: str
    name: str
    """`format`, or a pattern: `judge/TEMPLATE`."""
    module: str
    attribute: str
    doc: str
    """First line of its docstring."""

    @property
    def where(self) -> str:
        return f"{self.module}:{self.attribute}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a name of a configuration stands for."""

    name: str
    """As it was given."""
    thing: Any
    """The class, or the function."""
    given: dict[str, str]
    """Options that the name itself gives: the rest of a pattern."""
    label: str
    """A word for metrics and reports: `judge_helpfulness`, `Brevity`."""


@dataclass(frozen=True, slots=True)
class PluginFile:
    """A file that a configuration named."""

    path: Path
    sha256: str
    source: bytes
    module: Any


def register(kind: str, name: str) -> Callable[[T], T]:
    """Makes a class, or a function, known under a name. Raises InputError where another one has it."""

    def mark(thing: T) -> T:
        if thing.__module__.endswith(ON_DEMAND):  # a twin for the help, beside the one that is imported
            return thing
        before = _marked.get((kind, name))
        if before is not None and _place(before) != _place(thing):
            raise InputError(f"{kind} {name!r} is claimed twice, by {_place(before)} and {_place(thing)}; rename one")
        _marked[kind, name] = thing
        return thing

    if kind not in METHODS:
        raise InputError(f"register: no kind {kind!r}; there are {', '.join(METHODS)}")
    return mark


def entries(kind: str) -> dict[str, Entry]:
    """All registered names of a kind, in their alphabet. Raises InputError where two claim one name."""
    found: dict[str, Entry] = {}
    running = (
        Entry(k, name, thing.__module__, thing.__qualname__, (inspect.getdoc(thing) or "").partition("\n")[0])
        for (k, name), thing in _marked.items()
    )
    for entry in (*_own_entries(), *_entries_of_others(), *running):
        if entry.kind != kind:
            continue
        other = found.setdefault(entry.name, entry)
        if (other.module, other.attribute) != (entry.module, entry.attribute):
            raise InputError(f"{kind} {entry.name!r} is claimed twice, by {other.where} and {entry.where}; remove one")
    return dict(sorted(found.items()))


def find(kind: str, name: str, place: str = "", files: bool = True) -> Found:
    """The class or function behind a name: registered, of a pattern, or in a file or module.

    place: the setting that names it, for messages. files: whether files and modules may be named; what came with a
    checkpoint may not. Raises InputError where there is none, where its file cannot be used, where it is no such kind.
    """
    place = f"{place}: " if place else ""
    known = entries(kind)
    if name in known:
        return Found(name, imported(known[name], place), {}, label_of(name))
    for entry in known.values():
        prefix, slash, option = entry.name.partition("/")
        rest = name.removeprefix(f"{prefix}/")
        if slash and option.isupper() and rest and rest != name:
            return Found(name, imported(entry, place), {option.lower(): rest}, label_of(name))
    source, colon, attribute = name.rpartition(":")
    if colon and not files:
        raise InputError(f"{place}{name}: what came with a checkpoint may not name files or modules of its own")
    if colon and source.endswith(".py"):
        module = plugin_file(source, place).module
    elif colon and re.fullmatch(r"\w+(\.\w+)*", source):
        module = _module(source, place)
    else:
        also = ", or path/to/file.py:Name" if files else ""
        hint = did_you_mean(name, known) or f"there are {', '.join(known)}{also}"
        noun = NOUNS[kind].split(" ", 1)[1]
        raise InputError(f"{place}no {noun} is called {name!r}; {hint}")
    return Found(
        name, fitting(kind, _attribute(module, attribute, f"{place}{source}"), f"{place}{name}"), {}, attribute
    )


def fitting(kind: str, thing: Any, where: str) -> Any:
    """The thing, if it can be one of its kind; else InputError that says what was expected."""
    methods = METHODS[kind]
    expected = f"expected a class with {' and '.join(methods)}" + " or a function" * (kind in FUNCTIONS)
    if inspect.isclass(thing):
        own = {name for ancestor in thing.__mro__ for name in vars(ancestor)}  # its metaclass can be called, too
        lacking = [method for method in methods if method not in own or not callable(getattr(thing, method))]
        if lacking:
            raise InputError(f"{where}: is not {NOUNS[kind]}: {expected}, and this class has no {lacking[0]}")
    elif not (inspect.isfunction(thing) and kind in FUNCTIONS):
        what = "a function" if inspect.isfunction(thing) else f"of type {type(thing).__name__}"
        raise InputError(f"{where}: is not {NOUNS[kind]}: {expected}, and this is {what}")
    return thing


def label_of(name: str) -> str:
    """A name as one word, as it stands in metrics."""
    if name.endswith(".yaml") and "/" in name:  # a file without its folders
        name = f"{name.partition('/')[0]}/{name.rpartition('/')[2]}"
    return re.sub(r"\W+", "_", re.sub(r"\.v\d+$|\.yaml$", "", name)).strip("_")


# ---- files ----


def plugin_file(path: str, place: str = "") -> PluginFile:
    """A file's module, run once a process. Raises InputError where it is missing or raises."""
    full = Path(path).expanduser().absolute()
    if full in _files:
        return _files[full]
    if not full.is_file():
        raise InputError(f"{place}{path}: no such file; name a Python file and what it defines: path/to/file.py:Name")
    source = full.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    name = f"limner_plugin_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look a class's module up there
    try:
        exec(compile(source, str(full), "exec"), module.__dict__)  # what was hashed is what runs
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise InputError(f"{place}{path}: {_reason(error, full)}") from error
    _files[full] = PluginFile(full, digest, source, module)
    return _files[full]


def names_in(value: Any) -> Iterator[str]:
    """Every `path/file.py:Name` and `package.module:Name` within mappings and lists."""
    if isinstance(value, Mapping):
        yield from names_in([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from names_in(inner)
    elif names_a_file(value):
        yield value


def files_in(settings: Any) -> list[PluginFile]:
    """The files that settings name, in their alphabet. Raises InputError for one that is missing or raises."""
    places = {name.rpartition(":")[0] for name in names_in(settings)}
    return [plugin_file(place) for place in sorted(places) if place.endswith(".py")]


def names_a_file(text: object) -> bool:
    """`path/file.py:Name` or `package.module:Name`."""
    return isinstance(text, str) and re.fullmatch(r".+\.py:\w+|\w+(\.\w+)+:[A-Za-z_]\w*", text) is not None


def _module(name: str, place: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{place}{name}: no such module is installed; a file is named path/to/file.py:Name"
            ) from None
        raise InputError(f"{place}{name}: {_reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{place}{name}: {_reason(error)}") from error


def _attribute(module: Any, name: str, where: str) -> Any:
    if not hasattr(module, name):
        own = [n for n, thing in vars(module).items() if getattr(thing, "__module__", None) == module.__name__]
        hint = did_you_mean(name, own) or (f"it defines {', '.join(own)}" if own else "it defines nothing")
        raise InputError(f"{where}: has no {name!r}; {hint}")
    return getattr(module, name)


def _reason(error: BaseException, file: Path | None = None) -> str:
    """What was raised while a module ran, with the line of the file at fault."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None and line is None and file is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    words = " ".join(str(getattr(error, "msg", None) or error).split())
    at = f"line {line} " if line else ""
    return f"{at}raises {type(error).__name__}: {words}"


# ---- sources ----


def imported(entry: Entry, place: str = "") -> Any:
    """The class or function of an entry."""
    running = _marked.get((entry.kind, entry.name))
    if running is not None:
        return running
    return fitting(entry.kind, _attribute(_module(entry.module, place), entry.attribute, entry.module), entry.where)


@cache
def _own_entries() -> tuple[Entry, ...]:
    rooms = (path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = [file for room in rooms if room.name not in NOT_SHIPPED for file in sorted(room.rglob("*.py"))]
    return tuple(entry for file in files for entry in _read(file, f"{PACKAGE}.{_dotted(file.relative_to(ROOT))}"))


@cache
def _entries_of_others() -> tuple[Entry, ...]:
    """Of installed packages. One that cannot be found is named and left out: it must not stop what does not need it."""
    found: list[Entry] = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            found += _entries_in(point.module)
        except (Exception, SystemExit) as error:
            say(f"limner: plug-in {point.name} ({point.value}): {_reason(error)}; left out", to_stderr=True)
    return tuple(found)


def _entries_in(module: str) -> list[Entry]:
    """Of a module, or of all modules of a package; of these no more than the parents are imported."""
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {module!r}")
    folders = [*map(Path, spec.submodule_search_locations or ())]
    files = {file: _dotted(file.relative_to(folder)) for folder in folders for file in sorted(folder.rglob("*.py"))}
    if not folders:
        files = {Path(str(spec.origin)): ""}
    return [entry for file, inside in files.items() for entry in _read(file, f"{module}.{inside}".removesuffix("."))]


def _dotted(path: Path) -> str:
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def _read(file: Path, module: str) -> Iterator[Entry]:
    """What the `@register(kind, name)` of a file's top level claim."""
    text = file.read_text(encoding="utf-8", errors="replace")
    if "@register(" not in text:
        return
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return  # whoever imports it is told
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        doc = (ast.get_docstring(node) or "").partition("\n")[0]
        for decorator in node.decorator_list:
            match decorator:
                case ast.Call(ast.Name("register"), [ast.Constant(str(kind)), ast.Constant(str(name))]):
                    yield Entry(kind, name, module, node.name, doc)


def _place(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"
