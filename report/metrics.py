"""What a run's metrics say: figures by arm in the order people read them, the headline, the bars met or missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from .page import Html, element, join, number

METRICS = {
    "sampled.story_exact": ("sampled", "story exact"),
    "greedy.story_exact": ("greedy", "story exact"),
    "best_temperature.story_exact": ("best temperature", "story exact"),
    "sampled.image_exact": ("sampled", "pictures exact"),
    "sampled.sentence_exact": ("sampled", "sentences exact"),
    "sampled.structure": ("sampled", "structure"),
    "understanding.vqa": ("understanding", "questions"),
    "understanding.caption": ("understanding", "captions"),
    "text_to_image.exact": ("text to image", "exact"),
}
ABILITIES = ("understanding.vqa", "understanding.caption", "text_to_image.exact")

ARMS = {
    "warmup": ("Warm-up", "where every other arm starts"),
    "control": ("Control", "as long again on warm-up data"),
    "rejection": ("Rejection", "trained on its best samples"),
    "grpo_outcome": ("Outcome GRPO", "one reward for the whole answer"),
    "grpo_process": ("Process GRPO", "and a reward for every segment"),
}
"""Arms in the order shown: name for people, what it is. An unknown arm comes last, under its own name."""

REACH = 0.50
SAMPLED_BAR, GREEDY_BAR = 0.60, 0.80
RIVAL_METRICS = ("greedy.story_exact", "best_temperature.story_exact")
ABILITY_LOSS = -0.02
"""An ability counts as lost if its whole interval of difference to warm-up lies below this."""
ENOUGH = 500
"""Fewer items than this and a figure is marked as preliminary."""


class Estimate(NamedTuple):
    value: float
    low: float | None
    high: float | None
    n: int | None

    @classmethod
    def read(cls, record: Any) -> Estimate | None:
        """From `{"value", "low", "high", "n"}`; None where there is no value."""
        if not isinstance(record, Mapping) or (value := number(record.get("value"))) is None:
            return None
        n = number(record.get("n"))
        return cls(value, number(record.get("low")), number(record.get("high")), None if n is None else int(n))

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.interval}".rstrip()

    @property
    def interval(self) -> str:
        return "" if self.low is None or self.high is None else f"[{self.low:.2f}, {self.high:.2f}]"


class Comparison(NamedTuple):
    """A paired difference: arm minus against, over the same items."""

    arm: str
    against: str
    metric: str
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Verdict:
    claim: str
    met: bool | None
    """None: not measured."""
    figures: str


def headline(metrics: Mapping[str, Any]) -> Html:
    """Two sentences with the figures of the furthest arm that was evaluated."""
    story = {name: found for name in arm_names(metrics) if (found := figure(metrics, name, "sampled.story_exact"))}
    if not story:
        if metrics.get("unfinished"):
            return Html("The first arm is being trained; what is known of it so far is below.")
        return Html("No arm of this run was evaluated.")
    arm = list(story)[-1]
    first = [f"{label(arm)} writes ", _share(story[arm]), " of unseen picture stories exactly right when sampled"]
    if arm != "warmup" and "warmup" in story:
        first += [", against ", _share(story["warmup"]), " after warm-up"]
    if arm != "control" and "control" in story:
        first += [" and ", _share(story["control"]), " after as long again of warm-up"]
    second = []
    asked = {"greedy.story_exact": "of stories when greedy"} | dict(
        zip(ABILITIES, ("of questions about pictures", "of captions", "of pictures from a text"), strict=True)
    )
    for metric, words in asked.items():
        if (now := figure(metrics, arm, metric)) is None:
            continue
        before = figure(metrics, "warmup", metric) if arm != "warmup" else None
        second.append(join([_share(now), f" {words}", f" ({100 * before.value:.0f})" if before else ""]))
    if not second:
        return join([*first, "."])
    known = " (in brackets after warm-up)" if arm != "warmup" and "warmup" in story else ""
    return join([*first, f". It also gets right{known}: ", join(second, ", "), "."])


def _share(estimate: Estimate) -> Html:
    return element("strong", f"{100 * estimate.value:.0f}", Html("&nbsp;%"))


def verdicts(metrics: Mapping[str, Any]) -> list[Verdict]:
    """The bars this demonstration sets itself, met or missed by what was measured."""
    arm = "grpo_process"
    bars = {"sampled.story_exact": SAMPLED_BAR, "greedy.story_exact": GREEDY_BAR}
    reached = {metric: figure(metrics, arm, metric) for metric in bars}
    found = [
        Verdict(
            f"{label(arm)}, {METRICS[metric][0]}: at least {bar:.2f} of stories exact",
            None if (estimate := reached[metric]) is None else estimate.value >= bar,
            str(estimate or ""),
        )
        for metric, bar in bars.items()
    ]
    return [*found, _above_rivals(metrics, reached.values()), _preserved(metrics), _reached(metrics)]


def _above_rivals(metrics: Mapping[str, Any], reached: Iterable[Estimate | None]) -> Verdict:
    """Missed as soon as one rival is as good; met only where all of them were measured."""
    bars = [(rival, metric) for rival in ("warmup", "control") for metric in RIVAL_METRICS]
    rivals = {(rival, metric): found for rival, metric in bars if (found := figure(metrics, rival, metric))}
    words = [f"{label(rival)} {METRICS[metric][0]} {estimate}" for (rival, metric), estimate in rivals.items()]
    words += [
        f"{label(name)} was not run (`limner demo --arms all` runs it)"
        for name in ("warmup", "control")
        if name not in arm_names(metrics)
    ]
    ours = [estimate.value for estimate in reached if estimate]
    met = None
    if len(ours) == 2 and rivals:
        above = min(ours) > max(estimate.value for estimate in rivals.values())
        met = above if not above or len(rivals) == len(bars) else None
    return Verdict("Both above warm-up and control, greedy and at their best temperature", met, "; ".join(words))


def _preserved(metrics: Mapping[str, Any]) -> Verdict:
    claim = f"Understanding and text-to-image kept: no interval of difference wholly below {ABILITY_LOSS:.2f}"
    checked = [c for c in comparisons(metrics) if c.metric in ABILITIES and c.against == "warmup"]
    lost = [f"{label(c.arm)}, {metric_label(c.metric)} {signed(c.difference)}" for c in checked if is_lost(c)]
    if lost:
        return Verdict(claim, False, "; ".join(lost))
    arms = ordered({c.arm for c in checked})
    if missing := [
        f"{label(arm)}, {metric_label(metric)} has no interval"
        for arm in arms
        for metric in ABILITIES
        if not any((c.arm, c.metric) == (arm, metric) and c.difference.high is not None for c in checked)
    ]:
        return Verdict(claim, None, "; ".join(missing))
    return Verdict(claim, True if arms else None, f"none of the {len(checked)} differences to warm-up" if arms else "")


def _reached(metrics: Mapping[str, Any]) -> Verdict:
    reach = mapping(metrics, "first_reach")
    words = []
    for name in ordered(reach):
        step, seconds = (number(dig(reach, name, key)) for key in ("step", "seconds"))
        after = "" if seconds is None else f" ({seconds:,.0f} s)"
        at = "never" if step is None else f"at {step_unit(name)} {step:,.0f}{after}"
        words.append(f"{label(name)} {at}")
    arm = "grpo_process"
    met = number(dig(reach, arm, "step")) is not None if arm in reach else None
    return Verdict(f"{label(arm)} reaches {REACH:.2f}, sampled", met, "; ".join(words))


def comparisons(metrics: Mapping[str, Any], name: str = "comparisons") -> list[Comparison]:
    """Those that can be read; `gains` are of all seeds."""
    return [
        Comparison(str(record.get("arm")), str(record.get("against")), str(record.get("metric")), difference)
        for record in records(metrics, name)
        if (difference := Estimate.read(record))
    ]


def is_lost(comparison: Comparison) -> bool:
    """An ability of which the whole interval lies below ABILITY_LOSS."""
    high = comparison.difference.high
    return comparison.metric in ABILITIES and high is not None and high < ABILITY_LOSS


def dig(value: Any, *keys: str) -> Any:
    """What stands under these keys, None where one is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def mapping(value: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping under these keys, an empty one where there is none."""
    found = dig(value, *keys)
    return found if isinstance(found, Mapping) else {}


def records(value: Any, *keys: str) -> list[Mapping[str, Any]]:
    """The mappings in the list under these keys."""
    found = dig(value, *keys)
    return [record for record in found if isinstance(record, Mapping)] if isinstance(found, list | tuple) else []


def figure(metrics: Mapping[str, Any], arm: str, metric: str) -> Estimate | None:
    return Estimate.read(dig(metrics, "arms", arm, *metric.split(".")))


def ordered(names: Iterable[str]) -> list[str]:
    """Arms in the order of ARMS, unknown ones after them."""
    known = list(ARMS)
    return sorted(map(str, names), key=lambda name: known.index(name) if name in known else len(known))


def arm_names(metrics: Mapping[str, Any]) -> list[str]:
    return ordered(mapping(metrics, "arms"))


def label(arm: str) -> str:
    return ARMS[arm][0] if arm in ARMS else arm


def colour(arm: str) -> int:
    return list(ARMS).index(arm) if arm in ARMS else len(ARMS)


def step_unit(arm: str) -> str:
    """What a step of an arm's learning curve is: those of warm-up data count optimizer steps."""
    return "optimizer step" if arm in ("warmup", "control") else "rollout batch"


def metric_label(metric: str) -> str:
    """Figures of greedy stories have the names of the sampled ones."""
    way, _, name = metric.partition(".")
    known = METRICS.get(metric) or METRICS.get(f"sampled.{name}")
    return f"{way.replace('_', ' ')}: {known[1]}" if known else metric


def signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} {signed_interval(estimate)}".rstrip()


def signed_interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"[{estimate.low:+.2f}, {estimate.high:+.2f}]"
