"""Options of classes and functions: which there are, their values checked, what is shared, how they are told."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from limner.configs import build
from limner.configs.bounds import Range
from limner.configs.errors import InputError
from limner.configs.options import check, described, make, options_of
from limner.configs.registry import Found, find
from limner.configs.schema import fields_of


class Model:
    """What several share."""

    def __init__(self, name: Any):
        self.name = name


@dataclass
class Dataclass:
    """A dataclass."""

    words: int
    """Fewest of them."""
    share: Annotated[float, Range(0, 1)] = 0.5
    """Of the words that count."""
    mode: Literal["fast", "slow"] = "fast"
    names: list[str] = field(default_factory=lambda: ["a"])
    seen: int = field(default=7, init=False)

    def __post_init__(self):
        if self.words > 99:
            raise ValueError(f"words: {self.words} are too many")


class Plain:
    def __init__(self, words: int, share: Annotated[float, Range(0, 1)] = 0.5, *rest: int, mode="fast", **more: str):
        if words > 99:
            raise KeyError(words)
        self.given = (words, share, mode)


class Nothing:
    """Takes no options."""


@dataclass
class Config:
    words: int = 3
    """Fewest of them."""


class WithConfig:
    def __init__(self, items: list[str], config: Config):
        self.items, self.config = items, config


class Heir(Dataclass):
    """Of a dataclass, with a constructor of its own."""

    def __init__(self, length: int = 2):
        super().__init__(length)


def function(completions: "no such type", words: int = 3, share: Annotated[float, Range(0, 1)] = 0.5):  # noqa: F722
    return completions


def found(thing, given=None, name="mine.py:Mine"):
    return Found(name, thing, given or {}, "mine")


def made(thing, options, **others):
    return make(found(thing), options, "rewards.mine", **others)


def refused(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_are_the_fields_of_a_dataclass_and_the_parameters_of_others():
    assert options_of(Dataclass) is Dataclass
    assert [*fields_of(options_of(Plain))] == ["words", "share", "mode"]
    assert [*fields_of(options_of(function, ("completions",)))] == ["words", "share"]
    assert [*fields_of(options_of(Nothing))] == [] and isinstance(made(Nothing, {}), Nothing)
    assert options_of(WithConfig) is Config and [*fields_of(options_of(Heir))] == ["length"]
    assert [*fields_of(options_of(Dataclass, ("words", "seen")))] == ["share", "mode", "names"]


def test_an_instance_has_what_was_given_and_the_defaults():
    mine = made(Dataclass, {"words": 4, "names": ["b"]})
    assert mine == Dataclass(4, 0.5, "fast", ["b"]) and mine.seen == 7
    assert made(Dataclass, {"words": 4}).names is not made(Dataclass, {"words": 4}).names
    assert made(Plain, {"words": 4, "share": 1, "mode": [2]}).given == (4, 1.0, [2])
    assert made(Plain, {"words": 4}).given == (4, 0.5, "fast")
    assert made(Heir, {"length": 5}).words == 5
    assert check(options_of(function, ("completions",)), {"share": "0.25"}, "rewards.mine").share == 0.25


def test_what_the_caller_fills_is_no_option():
    mine = made(WithConfig, {"words": 4}, filled={"items": ["x"], "unasked": 1})
    assert (mine.items, mine.config) == (["x"], Config(4))
    mine = made(Dataclass, {"share": 1.0}, filled={"words": 9})
    assert mine == Dataclass(9, 1.0)
    assert "rewards.mine: words: unknown key" in refused(lambda: made(Dataclass, {"words": 1}, filled={"words": 9}))


FAULTS = {
    "unknown": ({"words": 1, "share_": 1}, "rewards.mine: share_: unknown key; did you mean share?"),
    "missing": ({}, "rewards.mine: words: missing, and it has no default"),
    "a word": ({"words": "many"}, "rewards.mine: words: expected int, got 'many'"),
    "a bool": ({"words": True}, "rewards.mine: words: expected int, got True"),
    "a part": ({"words": 1.5}, "rewards.mine: words: expected int, got 1.5"),
    "too low": ({"words": 1, "share": -0.1}, "rewards.mine: share: expected a number 0 to 1, got -0.1"),
    "too high": ({"words": 1, "share": 1.1}, "rewards.mine: share: expected a number 0 to 1, got 1.1"),
    "NaN": ({"words": 1, "share": float("nan")}, "rewards.mine: share: expected a number 0 to 1, got nan"),
    "infinite": ({"words": 1, "share": float("inf")}, "rewards.mine: share: expected a number 0 to 1, got inf"),
}


@pytest.mark.parametrize("thing", [Dataclass, Plain])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_option_at_fault_is_named(thing, fault):
    options, words = FAULTS[fault]
    assert refused(lambda: made(thing, options)) == words


def test_a_choice_and_the_checks_of_a_class_are_one_line():
    said = refused(lambda: made(Dataclass, {"words": 1, "mode": "slw"}))
    assert said == "rewards.mine: mode: expected one of fast, slow, got 'slw'; did you mean slow?"
    assert refused(lambda: made(Dataclass, {"words": 100})) == "rewards.mine: words: 100 are too many"


def test_a_constructor_that_raises_is_a_fault_of_the_file_and_a_bug_of_ours():
    assert refused(lambda: made(Plain, {"words": 100})) == "rewards.mine: raises KeyError when it is made: 100"
    with pytest.raises(KeyError):
        make(found(Plain, name="ours"), {"words": 100}, "rewards.ours")


def test_an_option_that_stands_in_the_name_is_not_given_again():
    pattern = found(Plain, {"words": 5}, "plain/5")
    assert make(pattern, {}, "rewards.plain/5").given[0] == 5
    said = refused(lambda: make(pattern, {"words": 6}, "rewards.plain/5"))
    assert said == "rewards.plain/5.words: stands in the name 'plain/5' already"


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Range(1), [1, 5, 10**9], [0, -1], "at least 1"),
        (Range(0, 1), [0, 1], [-1, 2], "a number 0 to 1"),
        (Range(most=5), [-7, 5], [6], "a number at most 5"),
        (Range(), [-7, 7], [], "a finite number"),
    ],
)
def test_bounds(bounds, inside, outside, words):
    @dataclass
    class Bounded:
        number: Annotated[float, bounds]

    for number in inside:
        assert build(Bounded, {"number": number}, "here").number == number
    for number in [*outside, float("nan"), float("inf"), "-inf"]:
        assert f"here: number: expected {words}, got " in refused(
            lambda n=number: build(Bounded, {"number": n}, "here")
        )


def test_what_is_had_by_a_name_says_so_itself():
    class Word:
        def __init__(self, text):
            self.text = text

        @classmethod
        def named(cls, name):
            if name == "none":
                raise InputError(f"no word {name!r}")
            return cls(name)

    @dataclass
    class Named:
        word: Word
        other: Word | None = None

    named = made(Named, {"word": "a"})
    assert named.word.text == "a" and named.other is None
    assert made(Named, {"word": named.word, "other": "b"}).other.text == "b"
    assert refused(lambda: made(Named, {"word": "none"})) == "rewards.mine: word: no word 'none'"
    assert "expected Word, got 3" in refused(lambda: made(Named, {"word": 3}))


# ---- what is shared ----


@dataclass
class Asking:
    judge: Model
    other: Model | None = None


class AskingPlainly:
    def __init__(self, judge: Model, other: Model | None = None):
        self.judge, self.other = judge, other


def asking(completions, judge: Model, other: Model | None = None):
    return judge, other


def shared(asked: list):
    def model(name, place):
        asked.append((name, place))
        if name == "nobody":
            raise InputError(f"{place}: {name!r} is none of `models:`")
        return Model(name)

    return {Model: model}


def answers(thing, options, asked):
    if thing is asking:
        return check(options_of(thing, ("completions",)), options, "rewards.mine", shared(asked))
    return made(thing, options, shared=shared(asked))


@pytest.mark.parametrize("thing", [Asking, AskingPlainly, asking])
def test_what_is_shared_is_named(thing):
    asked = []
    mine = answers(thing, {"judge": "a", "other": "b"}, asked)
    assert (mine.judge.name, mine.other.name) == ("a", "b")
    assert sorted(asked) == [("a", "rewards.mine.judge"), ("b", "rewards.mine.other")]
    assert "rewards.mine.judge: 'nobody' is none of" in refused(lambda: answers(thing, {"judge": "nobody"}, []))


@pytest.mark.parametrize("thing", [Asking, AskingPlainly, asking])
def test_what_is_optional_and_not_named_is_not_made(thing):
    for options in ({"judge": "a"}, {"judge": "a", "other": None}):
        asked = []
        assert answers(thing, options, asked).other is None and asked == [("a", "rewards.mine.judge")]
    asked = []
    assert answers(thing, {}, asked).judge.name is None and asked == [(None, "rewards.mine.judge")]


# ---- hints ----


def test_hints_that_only_a_type_checker_reads(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from nowhere import Completion\n"
        "def fine(completions: list[Completion], words: int = 3) -> list[Completion]: return []\n"
        "def vague(completions, words: Completion = 3): return []\n"
        "class Vague:\n"
        "    def __init__(self, words: Completion = 3): pass\n"
        "    def __call__(self, completions): return []\n"
    )
    fine = find("reward", f"{tmp_path / 'mine.py'}:fine").thing
    assert refused(lambda: check(options_of(fine, ("completions",)), {"words": "x"}, "here")).endswith("got 'x'")
    words = "the type hint of an option cannot be read: name 'Completion' is not defined; import it at the top"
    vague = find("reward", f"{tmp_path / 'mine.py'}:vague").thing
    assert refused(lambda: options_of(vague, ("completions",), "rewards.mine")) == f"rewards.mine: {words}"
    other = find("reward", f"{tmp_path / 'mine.py'}:Vague")
    assert refused(lambda: make(other, {}, "rewards.mine")) == f"rewards.mine: {words}"


def test_hints_of_any_sort_are_let_through():
    @dataclass
    class Odd:
        norm: Callable[[float], float] = abs
        many: Sequence[str] | None = None
        either: int | list[int] = 1

    assert made(Odd, {}, shared=shared([])).norm is abs
    assert made(Odd, {"either": [1, 2]}, shared=shared([])).either == [1, 2]


# ---- how people are told ----


def test_options_are_described_as_json():
    rows = described(Dataclass)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] == {
        "name": "words",
        "type": "int",
        "required": True,
        "default": None,
        "range": None,
        "help": "Fewest of them.",
    }
    share = {"name": "share", "type": "float", "required": False, "default": 0.5, "range": "0 to 1"}
    assert rows[1] == {**share, "help": "Of the words that count."}
    assert [row["name"] for row in rows] == ["words", "share", "mode", "names"] and rows[3]["default"] == ["a"]


def test_options_of_functions_and_constructors_are_described_without_docs():
    for rows in (described(Plain), described(function, ("completions",))):
        assert [(row["name"], row["range"], row["help"]) for row in rows[:2]] == [
            ("words", None, ""),
            ("share", "0 to 1", ""),
        ]
    (words,) = described(WithConfig, ("items",))
    assert (words["name"], words["help"], words["default"]) == ("words", "Fewest of them.", 3)
