"""Every number that somebody can give has bounds, and the message about another states them."""

import argparse
import dataclasses
import importlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from limner.configs.bounds import Hits, OneOrMore, Share, bounded
from limner.configs.errors import InputError
from limner.configs.listing import FILLED
from limner.configs.options import options_of
from limner.configs.registry import NOUNS, PACKAGE, entries, imported
from limner.configs.schema import Flag, bounds_of, build, check_ranges, fields_of, is_foreign, section_of

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = ("tests", "build", "dist", ".venv", "shared", "runs")


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] not in NOT_SHIPPED:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def configurations() -> Iterator[type]:
    """Every dataclass that a command hands to `parse`."""
    for name, text in sources():
        for call in re.finditer(r"parse\(\(([\w., ]+),?\)", text):
            module = importlib.import_module(f"limner.{name.removesuffix('.py').replace('/', '.')}")
            for word in call[1].split(","):
                thing: Any = module
                for part in filter(None, word.strip().split(".")):
                    thing = getattr(thing, part, None)
                if dataclasses.is_dataclass(thing):
                    yield thing  # type: ignore[misc]


def options() -> Iterator[type]:
    """The options of whatever is registered."""
    for kind in NOUNS:
        for entry in entries(kind).values():
            if entry.module.startswith(f"{PACKAGE}."):
                yield options_of(imported(entry), FILLED.get(kind, ()))


def numbers_without_bounds(cls: type, seen: set[type]) -> Iterator[str]:
    if cls in seen or cls.__module__.partition(".")[0] not in (PACKAGE, "limner", "types"):
        return
    seen.add(cls)
    for name, kind in fields_of(cls).items():
        if section := section_of(kind):
            yield from numbers_without_bounds(section, seen)
        elif _is_number(kind) and not (is_foreign(cls) and _is_theirs(cls, name)):
            yield f"{cls.__module__}.{cls.__name__}.{name}"


def _is_number(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return math.isinf(bounds_of(kind).most)  # type: ignore[union-attr]
    return kind in (int, float) or any(map(_is_number, get_args(kind)))


def _is_theirs(cls: type, name: str) -> bool:
    return any(name in vars(base).get("__annotations__", {}) for base in cls.__mro__ if is_foreign(base))


def test_every_number_has_bounds():
    seen: set[type] = set()
    found = [fault for cls in (*configurations(), *options()) for fault in numbers_without_bounds(cls, seen)]
    assert len(seen) > 30 and not found, found
    bare = [f"{name}: {hit[0]}" for name, text in sources() for hit in re.finditer(r"type=(int|float)\b", text)]
    assert not bare, bare


@pytest.mark.parametrize(
    ("flag", "values", "said"),
    [
        ("--learning_rate", ("nan", ".nan", "inf", "-1", "1e400", "9" * 400, "!!float x"), "0 to 1,000"),
        ("--max_steps", ("-2", "1" * 20, "1" * 5000, "1e30", "0x_"), "-1 to 1,000,000,000,000"),
        ("--seed", ("-1", "4294967296"), "0 to 4,294,967,295"),
        ("--pack_length", ("0", "-5", "1000001", "[" * 3000, "&a [*a]"), "1 to 1,000,000"),
    ],
)
def test_a_flag_out_of_bounds_is_named_with_its_bounds(limner, flag, values, said):
    for value in values:
        code, _, err = limner("warmup", "--config", "warmup/tiny", f"{flag}={value}")
        assert code == 2 and err.count("\n") == 1 and len(err) < 300, err
        assert err.startswith(f"limner: error: {flag}: expected"), err
        if re.fullmatch(r"-?\d{1,20}", value):
            assert said in err


def test_bounds_of_a_commands_own_flags(limner, tmp_path):
    for value in ("-1", "nan", "inf", "1e999", "x", "9" * 5000):
        code, _, err = limner("data", "from-markdown", tmp_path, "--out", tmp_path / "o", "--heldout-share", value)
        assert code == 2 and "argument --heldout-share: expected a number 0 to 1, got" in err, err
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number 1 to 1,000, got '1.5'"):
        bounded(Hits)("1.5")
    assert bounded(Hits)("7") == 7


def test_bounds_hold_for_python_too():
    @dataclasses.dataclass
    class Settings:
        rate: Share = 0.5
        count: OneOrMore | None = None

        def __post_init__(self):
            check_ranges(self)

    assert Settings(1, 3).count == 3
    with pytest.raises(InputError, match=r"^rate: expected a number 0 to 1, got nan"):
        Settings(float("nan"))
    with pytest.raises(InputError, match=r"^count: expected a number 1 to 1,000,000, got 0"):
        Settings(count=0)
    with pytest.raises(InputError, match=r"^--count: expected a number 1 to"):
        build(Settings, {"count": Flag("--count", "0")}, "mine.yaml")
