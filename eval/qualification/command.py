"""`limner qualify-judge`: can a judge, or a reward as a run would use it, tell a better answer from a worse one?

    pairs people compared, documents and damaged copies -> choices -> agreement, ties, position bias, a gate

limner qualify-judge --config qualify.yaml --pairs interleaved.json --form mmrb2 --documents DIR --out runs/qualify

Two kinds of scorers. `rewards` scores each answer by itself, with the section of a training run: its choice is the
higher score, and `total`, the weighted mean that training maximises, is what the gate looks at. `judge` sees both
answers in one prompt, and is asked in both orders. The rules:

- agreement: the share of people's preferences that the scorer shares, where its tie counts one half, so that a scorer
  that gives everything the same mark has 0.5; `decided` leaves its ties out. Pairs on which people tie are left out.
- lower: the share of damaged copies that lose outright; a tie is no loss. Below `threshold`, for any damage, the
  command exits with 1; so it does where a smaller share than that has a verdict, or no document could be damaged.
- Of two orders each counts one half; one that has failed counts nothing. A failure is never a choice.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, get_args

from ...configs import parse, save_resolved
from ...configs.bounds import TRILLION, OneOrMore, Range, Share
from ...configs.errors import InputError, keeping
from ...configs.schema import check_ranges
from ...configs.terminal import one_line, say
from ...configs.whole import write_atomically
from ...data.shards import INDEX
from ...models.chat.choice import ChatConfig, chat_model
from ...models.chat.requests import Answer, ChatModel, Request, fill
from ...models.documents.document import InterleavedDocument, TextSegment
from ...rewards.base import Completion
from ...rewards.build import RewardSettings, reward_parts
from ...rewards.guard import GuardedReward
from ...rewards.hybrid import known, weighted_mean
from ...rewards.judges.grading import JudgeReward, Template, read_verdict
from ..benchmark import judge_template
from ..entries import spaced
from ..run import SAY_EVERY_S, sha256
from ..statistics import Estimate
from .ballots import Ballot, faults, figures
from .preference_pairs import (
    PREFERENCES,
    Corruption,
    Form,
    Pair,
    Preference,
    Skipped,
    read_answered,
    read_pairs,
    sanity_pairs,
)

NEVER = 2**31
"""Failed calls in a row at which a part stops the command: failures are what is measured."""
EQUAL = 1e-9
"""Scores nearer to each other are a tie."""
SCALE = (0.0, 2.0)
"""Of the pairwise template."""
CHOICES: dict[float, Preference] = {0.0: "tie", 1.0: "a", 2.0: "b"}
TURNED: dict[Preference, Preference] = {"a": "b", "b": "a", "tie": "tie"}
REPLIES = "replies.sqlite"


@dataclass
class PairwiseConfig(ChatConfig):
    template: str = "preference"
    """Prompt that shows both answers: the package's, or a file of your own."""


@dataclass
class QualifyConfig(RewardSettings):
    pairs: str = ""
    """File of pairs that people compared."""
    form: Form = "jsonl"
    """Of that file."""
    images: str = ""
    """Folder that its pictures are relative to; by default that of the file."""
    documents: str = ""
    """Shard folder or JSONL file of documents, for the sanity set."""
    split: Literal["train", "heldout"] = "heldout"
    """Of the shards."""
    limit: Annotated[int, Range(2, TRILLION)] = 200
    """Documents taken, the first ones."""
    corruptions: list[Corruption] = field(default_factory=lambda: list(get_args(Corruption)))
    """How they are damaged; the gate asks for all of them."""
    rewards: dict[str, Any] = field(default_factory=dict)
    """Rewards that score one answer, as in the training run; and/or"""
    judge: PairwiseConfig | None = None
    """a judge that sees two."""
    threshold: Share = 0.8
    """Least share of damaged copies that must lose."""
    batch_size: OneOrMore = 32
    """Pairs scored at a time."""
    out: str = "runs/qualify"
    """Folder of results.json, and of the judge's replies where it has no `cache` of its own."""

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()
        if not self.pairs and not self.documents:
            raise InputError("pairs, documents: give one or both, --pairs FILE that people compared, --documents DIR")
        if not self.rewards and self.judge is None:
            raise InputError("rewards, judge: give what is to be qualified, one or both")
        if not self.corruptions:
            raise InputError(f"corruptions: none; there are {', '.join(get_args(Corruption))}")


class Scorer(Protocol):
    gated: str
    """Name of the row that the gate looks at."""

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[Ballot]]:
        """A ballot of each pair, by the name of the row."""
        ...

    def failed(self) -> dict[str, dict[str, int]]:
        """Failures so far by row and kind."""
        ...

    def manifest(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


class Pointwise:
    """The parts of a training run's reward, and their weighted mean as training takes it. A `Scorer`."""

    def __init__(self, config: RewardSettings):
        timeout = config.reward_guard.timeout
        self.parts = [(GuardedReward(part, timeout, NEVER), weight) for part, weight in reward_parts(config)]
        if not self.parts:
            raise InputError("rewards: no part has a weight; give one to what is to be qualified")
        self.gated = "total" if len(self.parts) > 1 else self.parts[0][0].name
        self._kinds: dict[str, Counter[str]] = {guard.name: Counter() for guard, _ in self.parts}
        scores = {guard.name: getattr(guard.reward, "score", None) for guard, _ in self.parts}
        self._judges = {name: score for name, score in scores.items() if isinstance(score, JudgeReward)}

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[Ballot]]:
        distinct: dict[tuple[int, int], Completion] = {}  # the original of several damaged copies is scored once
        for pair in pairs:
            for answer in (pair.a, pair.b):
                distinct.setdefault((id(pair.prompt), id(answer)), Completion(pair.prompt, answer))
        places = {key: place for place, key in enumerate(distinct)}
        rows = self._scores(list(distinct.values()))
        return {
            name: [
                Ballot(
                    pair.group,
                    pair.preferred,
                    (_higher(*(scores[places[id(pair.prompt), id(answer)]] for answer in (pair.a, pair.b))),),
                )
                for pair in pairs
            ]
            for name, scores in rows.items()
        }

    def failed(self) -> dict[str, dict[str, int]]:
        kinds: dict[str, dict[str, int]] = {}
        for guard, _ in self.parts:
            if judge := self._judges.get(guard.name):  # which knows more than that a whole call has failed
                found = {kind: count for kind, count in judge.verdicts.items() if kind != "scored"}
            else:
                found = dict(self._kinds[guard.name] + guard.failures)
            kinds[guard.name] = found
        return kinds

    def manifest(self) -> dict[str, Any]:
        return {name: judge.manifest() for name, judge in self._judges.items()}

    def close(self) -> None:
        for model in {id(judge.endpoint): judge.endpoint for judge in self._judges.values()}.values():
            model.close()

    def _scores(self, completions: Sequence[Completion]) -> dict[str, list[float | None]]:
        rows: dict[str, list[float | None]] = {}
        for guard, _ in self.parts:
            output = guard(completions)
            rows[guard.name] = output.outcome
            self._kinds[guard.name] += Counter(output.failed)
        if len(self.parts) > 1:
            weights = [weight for _, weight in self.parts]
            columns = zip(*rows.values(), strict=True)
            rows["total"] = [weighted_mean(list(zip(column, weights, strict=True))) for column in columns]
        return {name: [known(score) for score in row] for name, row in rows.items()}


class Pairwise:
    """A judge that sees both answers, once in each order. A `Scorer`."""

    gated = "judge"

    def __init__(self, model: ChatModel, template: Template):
        self.model, self.template = model, template
        self._kinds: Counter[str] = Counter()

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, list[Ballot]]:
        orders = [order for pair in pairs for order in ((pair.a, pair.b), (pair.b, pair.a))]
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        answers = self.model.complete([self._request(p, *order) for p, order in zip(prompts, orders, strict=True)])
        slots: list[Preference | None] = [self._slot(answer) for answer in answers]
        ballots = []
        for pair, shown, turned in zip(pairs, slots[::2], slots[1::2], strict=True):
            choices: tuple[Preference | None, ...] = (shown, None if turned is None else TURNED[turned])
            ballots.append(Ballot(pair.group, pair.preferred, choices))
        return {self.gated: ballots}

    def failed(self) -> dict[str, dict[str, int]]:
        return {self.gated: dict(self._kinds)}

    def manifest(self) -> dict[str, Any]:
        return {self.gated: {"template": self.template.manifest(), "judge": self.model.manifest()}}

    def close(self) -> None:
        self.model.close()

    def _request(self, prompt: InterleavedDocument, first: InterleavedDocument, second: InterleavedDocument) -> Request:
        nothing = (TextSegment("(nothing)"),)
        both = (TextSegment("First answer:\n"), *(first.segments or nothing))
        both += (TextSegment("\nSecond answer:\n"), *(second.segments or nothing))
        places = {"prompt": spaced(prompt.segments), "answer": spaced(both)}
        return Request(fill(self.template.prompt, places), self.template.system, self.template.identity)

    def _slot(self, answer: Answer) -> Preference | None:
        """The slot it prefers: `a` the first, `b` the second."""
        verdict = read_verdict(answer, self.template)
        failure = verdict.failure or ("" if verdict.score in CHOICES else "no choice")
        if failure:
            self._kinds[failure] += 1
            return None
        assert verdict.score is not None
        return CHOICES[verdict.score]


def _higher(a: float | None, b: float | None) -> Preference | None:
    if a is None or b is None:
        return None
    return "tie" if abs(a - b) <= EQUAL else "a" if a > b else "b"


# ---- the command ----


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables. Exits with 1 where a scorer does not pass, or has not one verdict."""
    (config,) = parse((QualifyConfig,), argv, prog="limner qualify-judge")
    logging.getLogger("limner.rewards.guard").setLevel(logging.ERROR)  # failures are counted here, by kind
    with keeping(f"{config.out} keeps the judge's replies; the same command asks only for what is missing"):
        results = qualify(config)
    if reason := nothing_compared(results):
        say(f"limner: error: {one_line(reason)}", to_stderr=True, flush=True)
    say(table(results))
    say(f"wrote {Path(config.out) / 'results.json'}; next: {_following(results['passed'])}")
    if results["passed"] is False or reason:
        raise SystemExit(1)


def _following(passed: bool | None) -> str:
    if passed is None:
        return "the same command with --documents, which tells whether damage is seen"
    return "limner grpo with it as a reward" if passed else "the same command with another judge, template or reward"


def qualify(config: QualifyConfig) -> dict[str, Any]:
    """What `OUT/results.json` holds. Another call asks a judge only what it has not answered yet. Raises InputError."""
    out, scorers = Path(config.out), make_scorers(config)
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}
    ballots: dict[str, list[Ballot]] = {}
    try:
        for batch in _batches(_compared(all_pairs(config), skipped, first), config.batch_size):
            for scorer in scorers:
                for name, row in scorer(batch).items():
                    ballots.setdefault(name, []).extend(row)
    finally:
        for scorer in scorers:
            scorer.close()
    failed = {name: kinds for scorer in scorers for name, kinds in scorer.failed().items()}
    gated = [scorer.gated for scorer in scorers]
    rows = {name: {**_by_group(row), "failed": failed.get(name, {})} for name, row in ballots.items()}
    asked = config.corruptions if config.documents else []
    problems = {name: faults(rows.get(name, {}), asked, config.threshold) for name in gated}
    results = {
        "limner": version("limner"),
        "created": time.strftime("%Y-%m-%d"),
        "sources": {name: _source(Path(path)) for name in ("pairs", "documents") if (path := getattr(config, name))},
        "scorers": {name: value for scorer in scorers for name, value in scorer.manifest().items()},
        "threshold": config.threshold,
        "skipped": dict(skipped),
        "first": first,
        "rows": rows,
        "gated": gated,
        "faults": problems,
        "passed": not any(problems.values()) if config.documents else None,
    }
    save_resolved(out / "config.yaml", config)
    write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
    return results


def make_scorers(config: QualifyConfig) -> list[Scorer]:
    """Their judges keep replies in OUT unless they have a cache. Raises InputError."""
    scorers: list[Scorer] = []
    asked = [(shared.local or shared) for shared in config.endpoints.values()]
    asked += [config.judge.endpoint, config.judge.local] if config.judge else []
    for model in asked:
        if model is not None:
            model.cache = model.cache or str(Path(config.out) / REPLIES)
    if config.judge:
        template = judge_template(config.judge.template, SCALE)
        scorers.append(Pairwise(chat_model(config.judge, "judge"), template))
    if config.rewards:
        scorers.append(Pointwise(config))
    return scorers


def all_pairs(config: QualifyConfig) -> Iterator[Pair | Skipped]:
    if config.pairs:
        yield from read_pairs(Path(config.pairs), config.form, Path(config.images) if config.images else None)
    if config.documents:
        documents = read_answered(Path(config.documents), config.split, config.limit)
        yield from sanity_pairs(documents, config.corruptions)


def _compared(pairs: Iterable[Pair | Skipped], skipped: Counter[str], first: dict[str, str]) -> Iterator[Pair]:
    """Those that can be; of the others the number by kind, and the first one's reason."""
    said = time.monotonic()
    for number, pair in enumerate(pairs, 1):
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say(f"limner qualify-judge: at pair {number}", to_stderr=True, flush=True)
        if isinstance(pair, Skipped):
            skipped[pair.kind] += 1
            first.setdefault(pair.kind, pair.reason)
        else:
            yield pair


def _batches(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    while batch := list(itertools.islice(pairs, size)):
        yield batch


def _by_group(ballots: Sequence[Ballot]) -> dict[str, Any]:
    groups = dict.fromkeys(ballot.group for ballot in ballots)
    return {group: figures([ballot for ballot in ballots if ballot.group == group]) for group in groups}


def _source(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": sha256(path / INDEX if path.is_dir() else path)}


def nothing_compared(results: Mapping[str, Any]) -> str:
    """Why a scorer has not one verdict; empty where all have some."""
    if not results["rows"]:
        return f"not one pair was compared: {_skipped(results)}"
    for name, row in results["rows"].items():
        if not any(found["with_verdict"] for group, found in row.items() if group != "failed"):
            return f"{name}: not one verdict: " + ", ".join(f"{count} {kind}" for kind, count in row["failed"].items())
    return ""


def _skipped(results: Mapping[str, Any]) -> str:
    said = [f"{count} {kind}, the first: {results['first'][kind]}" for kind, count in results["skipped"].items()]
    return "; ".join(said) or "the files hold none"


def table(results: Mapping[str, Any]) -> str:
    """For the terminal."""
    lines = []
    for name, row in results["rows"].items():
        for group in (key for key in row if key != "failed"):
            found = row[group]
            share = "agreement" if group == PREFERENCES else "outright"
            what = "agree with people" if group == PREFERENCES else "score lower"
            words = [f"{found['with_verdict']} of {found['pairs']} pairs", f"{_said(found[share])} {what}"]
            words += [f"{_said(found['ties'])} ties"]
            if "first_slot" in found:
                words += [
                    f"first slot {_said(found['first_slot'])}",
                    f"same both ways {_said(found['same_both_ways'])}",
                ]
            lines.append(f"{name:24} {group:18} {'; '.join(words)}")
        if row["failed"]:
            lines.append(f"{name:24} {'failed':18} " + ", ".join(f"{n} {kind}" for kind, n in row["failed"].items()))
    if results["skipped"]:
        lines.append(f"skipped: {_skipped(results)}")
    for name, problems in results["faults"].items():
        lines += [f"{name} does not qualify: {problem}" for problem in problems]
    passed = {True: "qualified", False: "not qualified: do not train against it", None: "no sanity set, no gate"}
    return "\n".join([*lines, passed[results["passed"]]])


def _said(value: Estimate | None) -> str:
    return "-" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
