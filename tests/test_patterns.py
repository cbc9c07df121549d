"""Every regular expression of the package takes time that grows with the text, not with its square.

The patterns are found in the source, each with the ways in which it is used, so that a new one is measured without
being listed; only one that is put together from what a caller gives needs an example here. The texts are made of the
pattern itself: what a run of its parts matches, over and over, behind what leads up to it.
"""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from time import thread_time

import pytest

from limner.data.insertion.placements import read_markers
from limner.data.insertion.prompt import read_answer as read_placements
from limner.data.sentences import sentences
from limner.eval import benchmark
from limner.eval.benchmarks.mmie import official_score
from limner.eval.benchmarks.mramg.judge import read_tags
from limner.eval.benchmarks.vqa import chosen_letter
from limner.models.chat.requests import Reply
from limner.rewards.judges.grading import load_template, packaged_templates, read_verdict
from limner.rewards.judges.questions import read_answer, read_questions

ROOT = Path(benchmark.__file__).parents[1]
ELSEWHERE = ("tests", "docs", "scripts", "setup.py", ".venv")
FUNCTIONS = ("compile", "search", "match", "fullmatch", "findall", "finditer", "split", "sub", "subn")
ALL_OVER = ("findall", "split", "sub", "subn")
"""They search on behind each match, like `finditer`."""
NOT_OURS = [
    *("eval/benchmarks/official_prompts.py", "models/chat/tags.py", "rewards/judges/grading.py"),
    *("studies/check/findings.py", "studies/check/training.py"),  # names of this machine, and of a model's modules
]
"""Where a pattern comes from a setting, or is a part of one; READERS has those of the package."""
GIVEN = {
    "configs/whole.py": r"\.model\.(previous|old-[0-9]+)",
    "models/documents/rendering.py": r"answer(-[0-9]+)?",
    "eval/benchmarks/vqa.py": r"(?i:\banswer(?: is)?\s*+:?+\s*+)\(?([ABCD])\b|\(?([ABCD])(?:[).:,]|\s*$)",
    "rewards/encoders/imagereward.py": r"^blocks\.(\d+)\.attn\.",
    "report/search.py": r"\bfold\w{0,4}|\bcat(?:s?)\b",
    "train/scale/lora.py": r"model\.vision(\..*)?|model\.vqmodel(\..*)?",
    "worlds/icon_tales/kept.py": r"\bparis\b",
}
"""What a pattern looks like that a function puts together."""

LONGEST = 12_000
"""Characters. Of so many a quadratic search takes 30 ms and more, a linear one some milliseconds."""
ENOUGH_S = 0.02
GROWTH = 9.0
"""Of the time, for four times the text: 4 where it is linear, 16 where it is quadratic."""


def patterns():
    """(file and line, pattern or None where a function puts it together, flags, ways in which it is used)"""
    calls, uses = [], defaultdict(set)
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        tree = ast.parse(path.read_text(encoding="utf-8")) if place.parts[0] not in ELSEWHERE else ast.Module([], [])
        assigned = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                pairs = zip(*map(_several, (node.targets[0], node.value)), strict=False)
                assigned |= {id(value): target for target, value in pairs}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FUNCTIONS:
                owner = ast.unparse(node.func.value)
                if owner == "re":
                    calls.append((place, node, ast.unparse(assigned.get(id(node), ast.Constant("")))))
                else:
                    uses[owner.rpartition(".")[2]].add(node.func.attr)
    for place, node, name in calls:
        function, arguments = node.func.attr, node.args
        flags = [*arguments[{"compile": 1, "sub": 4, "subn": 4}.get(function, 2) :], *(k.value for k in node.keywords)]
        ways = {function} if function != "compile" else uses[name] or {"search", "fullmatch"}
        names = vars(
            importlib.import_module(".".join(("limner", *place.with_suffix("").parts)).removesuffix(".__init__"))
        )
        try:
            pattern, *flags = (eval(ast.unparse(part), names) for part in (arguments[0], *flags))
        except NameError:
            yield place.as_posix(), node.lineno, None, 0, ways
        else:
            pattern = getattr(pattern, "pattern", pattern)
            yield place.as_posix(), node.lineno, pattern, sum(f for f in flags if isinstance(f, re.RegexFlag)), ways


def _several(node):
    return node.elts if isinstance(node, ast.Tuple) else [node]


def runs_of(parsed):
    """What the parts of a pattern match, one list for each run of parts, that of the whole first."""
    run, inner, before = [], [], None
    for kind, value in parsed:
        own, below = sample(kind, value)
        inner += below
        if kind is before is kinds.LITERAL:
            run[-1] += own
        else:
            run.append(own)
        before = kind
    return [run, *inner]


def sample(kind, value):
    """A text that a part matches, and the runs inside it."""
    if kind is kinds.LITERAL:
        return chr(value), []
    if kind is kinds.NOT_LITERAL:
        return "b" if value == ord("a") else "a", []
    if kind is kinds.ANY:
        return "a", []
    if kind is kinds.IN:
        return next(filter(class_of(value), [*'a0 .<=-(["A_\n', *map(chr, range(0x10000))])), []
    if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
        inner = runs_of(value[2])
        return "".join(inner[0]) * max(value[0], 1), inner
    if kind is kinds.BRANCH:
        inner = [run for branch in value[1] for run in runs_of(branch)]
        return "".join(inner[0]), inner
    if kind in (kinds.SUBPATTERN, kinds.ATOMIC_GROUP):
        inner = runs_of(value[-1] if kind is kinds.SUBPATTERN else value)
        return "".join(inner[0]), inner
    if kind in (kinds.ASSERT, kinds.ASSERT_NOT):
        return "", runs_of(value[1])
    return "", []


def class_of(items):
    """Does a character belong to a class of the parser's?"""
    known = {"DIGIT": str.isdigit, "SPACE": str.isspace, "WORD": lambda char: char.isalnum() or char == "_"}

    def belongs(char):
        for kind, value in items:
            if kind is kinds.CATEGORY:
                word = str(value).removeprefix("CATEGORY_")
                if known[word.removeprefix("NOT_")](char) != word.startswith("NOT_"):
                    return True
            elif kind is not kinds.NEGATE and ord(char) in (
                range(value[0], value[1] + 1) if kind is kinds.RANGE else [value]
            ):
                return True
        return False

    return lambda char: belongs(char) != (items[0][0] is kinds.NEGATE)


def hostile_texts(pattern, flags):
    """(what leads up to it, what is said over and over, what ends it)"""
    runs = runs_of(_parser.parse(pattern, flags))
    signs = {char for run in runs for part in run for char in part if not char.isalnum()} | set("a0 \n")
    found = {}
    for run in runs:
        for start in range(len(run)):
            for said in {*("".join(run[start:end]) for end in range(start + 1, len(run) + 1)), *signs} - {""}:
                found["".join(run[:start]), said] = None
    return [(before, said, end) for before, said in found for end in ("", "\0")]


def seconds(use, text):
    start = thread_time()
    use(text)
    return thread_time() - start


def grows(use, text):
    """How much longer four times the text takes, where that is out of proportion and more than a moment.

    text: of a number of repetitions. The fastest of several runs counts: a busy machine makes them longer, never
    shorter.
    """
    one = len(text(1))
    for times in (22, 400 // one, 2000 // one, LONGEST // one):
        if times > 3 and seconds(use, text(times)) > ENOUGH_S:
            short, long = (min(seconds(use, text(n)) for _ in range(2)) for n in (times // 4, times))
            if long > GROWTH * short:
                return f"{long / short:.0f} times as long for 4 times {text(1)!r}, {long:.2f} s for {len(text(times))}"
    return ""


def slow_use(pattern, flags, ways):
    """The first text that a pattern takes out of proportion for, in words; empty where there is none."""
    compiled = re.compile(pattern, flags)
    coded = (lambda text: text.encode("latin-1", "replace")) if isinstance(pattern, bytes) else str
    for before, said, end in hostile_texts(pattern, flags):
        for way in sorted({"finditer" if way in ALL_OVER else way for way in ways}):
            method = getattr(compiled, way)
            use = (lambda text: all(method(text))) if way == "finditer" else method  # noqa: B023
            if fault := grows(lambda text, use=use: use(coded(text)), lambda n, b=before, s=said, e=end: b + s * n + e):
                return f"{way}: {fault}"
    return ""


@pytest.mark.parametrize(
    "pattern",
    [
        "<score>(.*?)</score>",
        r"<img\s[^>\n]*=[^>\n]*>",
        r"### Score.*?(-?\d+)",
        "(a+)+$",
    ],
)
def test_a_planted_pattern_is_reported(pattern):
    assert slow_use(pattern, re.DOTALL, {"search"})


@pytest.mark.slow  # some seconds
def test_every_pattern_takes_time_in_proportion_to_its_text():
    faults, unknown, seen = [], [], 0
    for file, line, pattern, flags, ways in patterns():
        seen += 1
        if pattern is None and file not in GIVEN:
            unknown.append(file)
        elif fault := slow_use(GIVEN[file] if pattern is None else pattern, flags, ways):
            faults.append(f"{file}:{line}: {fault}")
    assert not faults, "\n".join(faults)
    assert sorted(set(unknown)) == NOT_OURS, sorted(set(unknown) ^ {*NOT_OURS})
    assert seen > 80


TEMPLATES = {
    path.stem: load_template(str(path))
    for path in [*packaged_templates().values(), *Path(benchmark.__file__).with_name("templates").glob("*.yaml")]
}
READERS = {
    "markers": lambda text: read_markers(text, 3),
    "placements": lambda text: read_placements(text, 3, 3),
    "sentences": sentences,
    "MMIE": official_score,
    "letter": lambda text: chosen_letter(text, ["a", "b", "c", "d"]),
    "questions": lambda text: read_questions(Reply(text)),
    "yes or no": lambda text: read_answer(Reply(text)),
    "tags": lambda text: read_tags(Reply(text), TEMPLATES["text_relevance.v1"], 3, first=False),
    **{name: lambda text, own=template: read_verdict(Reply(text), own) for name, template in TEMPLATES.items()},
}
SAID = [
    *("<score>", "</score>", "<score>1</score>", "<img_1_score>", "<better>", "<overall_quality_score>", "### Score"),
    *("<img a=", "<img 1> ", "<img1> ", "![", "![](", "[img", "<", "<answer>", "<think>", '<question picture="each">'),
    *(
        "1. ",
        "St. ",
        "e.g. ",
        "A. ",
        ". ",
        " ",
        "\n",
        " \n",
        "\u3002",
        "answer: ",
        "(",
        "sorry ",
        "1",
        "-1.",
        "[",
        "0,",
    ),
]


@pytest.mark.parametrize("name", READERS)
def test_readers_of_what_models_say_take_time_in_proportion(name):
    for said in SAID:
        for before, end in (("", ""), ("<score>", "x"), ("### Score", "</score>")):
            assert not (fault := grows(READERS[name], lambda n: before + said * n + end)), fault  # noqa: B023
