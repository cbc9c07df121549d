"""The report of a run: one page with what was shown, the arms, the curves, and the same prompts side by side.

`metrics` is what the demo writes as metrics.json. What is missing of it is left out, with a note where it is missed:

    arms.<name>         figures as in metrics.METRICS, each {"value", "low", "high", "n"}; "seconds";
                        "curve": [{"step", "seconds", "sampled_story_exact"}], with "low" and "high" where known;
                        "training": [{"step", "rewards/format", ...}]
    comparisons         [{"arm", "against", "metric", "value", "low", "high", "n"}]
    first_reach.<name>  {"step", "seconds"} or null
    stages              {"image_tokenizer": {...}, "warmup": {"loss": [{"step", "text", "image"}], ...}}
    data.tokens.<kind>  {"text", "image"}
    seeds               [{"seed", "arms"}], where there is more than one
    gains               as comparisons, over all seeds: [{.., "seeds", "lowest", "highest"}]
    title, command, seed, device, created, versions, settings

    unfinished          what is being done, while the run goes on; the page then loads itself anew

`samples` is [{"id", "prompt", "pictures", "answers": {arm: {"document", "outcome", "components", "segments"}}}],
documents as JSON, `pictures` how many an answer should have, and segments as [{"index", "type", "reward", "parts"}],
with the index of the segment in the answer's document.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs.whole import write_atomically
from . import page
from .answers import column, document, strip
from .metrics import (
    ARMS,
    ENOUGH,
    METRICS,
    REACH,
    Comparison,
    Estimate,
    Verdict,
    arm_names,
    colour,
    comparisons,
    dig,
    figure,
    headline,
    is_lost,
    label,
    mapping,
    metric_label,
    ordered,
    records,
    signed_interval,
    step_unit,
    verdicts,
)
from .page import Html, Line, details, element, facts, join, line_chart, note, number, section, table, whisker

SHOWN_FIRST = 3
"""So many prompts stand at the top of the page."""
REFRESH_S = 10
LEADING_GROUPS = ("reward", "rewards", "kl", "entropy", "clip_fraction", "ratio", "replay_gap")
MODALITY_COLOURS = {"text": 1, "image": 4}
SPARE_COLOURS = (4, 1, 3, 2, 5, 7, 6, 0)
DASH = Html("&ndash;")


def write_report(path: Path, metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
    """The file appears whole or not at all."""
    write_atomically(path, report_html(metrics, samples))


def report_html(metrics: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    title = str(metrics.get("title") or "Picture stories, before and after GRPO")
    unfinished = metrics.get("unfinished")
    sections = {
        "arms": ("The arms", _arms_table(metrics)),
        "differences": ("Differences, prompt by prompt", _comparisons(metrics)),
        "seeds": ("Spread over seeds", _seeds(metrics)),
        "curves": ("Learning", _curves(metrics)),
        "samples": ("Every prompt and every arm, with its rewards", _samples(samples)),
        "training": ("Training, by component and modality", _training(metrics)),
        "stages": ("Before GRPO", _stages(metrics)),
        "settings": ("Settings and versions", _settings(metrics)),
    }
    links = join(
        Html(f'<a href="#{name}">{page.escape(heading)}</a>') for name, (heading, body) in sections.items() if body
    )
    return page.page(
        title,
        element("p", "limner run report", style="kicker"),
        element("h1", title),
        element("p", headline(metrics), style="lead"),
        _still_running(str(unfinished)) if unfinished else "",
        _before_and_after(samples),
        _verdict_list(verdicts(metrics)),
        element("nav", links),
        *(section(name, heading, body) for name, (heading, body) in sections.items() if body),
        refresh_s=REFRESH_S if unfinished else 0,
    )


def _still_running(doing: str) -> Html:
    when = time.strftime("%H:%M:%S")
    words = f"As of {when}; this page loads itself anew. A run that was stopped goes on with the same command."
    return element("p", element("b", doing), " ", element("small", words), style="running")


# ---- pictures first ----


def _before_and_after(samples: Sequence[Mapping[str, Any]]) -> Html:
    """The prompts whose reward changed most, each as a strip of pictures before and one after."""
    names = ordered({name for sample in samples for name in mapping(sample, "answers")})
    if not names:
        return Html("")
    before, after = names[0], names[-1]

    def gain(sample: Mapping[str, Any]) -> float:
        first, last = (number(dig(sample, "answers", name, "outcome")) for name in (before, after))
        return -math.inf if first is None or last is None else last - first

    ends = [(name, label(name), colour(name)) for name in dict.fromkeys((before, after))]
    shown = sorted(samples, key=gain, reverse=True)[:SHOWN_FIRST]
    words = f"Unseen prompts: {label(before)}" + (f", and under it {label(after)}" if after != before else "")
    if len(samples) > len(shown) and after != before:
        words += f"; of {len(samples)} the {len(shown)} that gained most. All of them are below"
    strips = [
        element("article", document(sample.get("prompt")), *(strip(sample, *arm) for arm in ends)) for sample in shown
    ]
    return element("div", note(words + "."), *strips, style="first")


def _verdict_list(found: Iterable[Verdict]) -> Html:
    marks = {True: ("good", "&#10003; met"), False: ("poor", "&#10007; missed"), None: ("none", "&ndash; not measured")}
    items = []
    for verdict in found:
        style, mark = marks[verdict.met]
        words = element("div", verdict.claim, element("small", verdict.figures))
        items.append(element("li", element("span", Html(mark), style=f"mark {style}"), words))
    return element("ul", *items, style="verdicts")


# ---- tables ----


def _arms_table(metrics: Mapping[str, Any]) -> Html:
    names = arm_names(metrics)
    if not names:
        return note("No arm was run.")
    figures = {(name, metric): figure(metrics, name, metric) for name in names for metric in METRICS}
    shown = [metric for metric in METRICS if any(figures[name, metric] for name in names)]
    rows = []
    for name in names:
        seconds = number(dig(metrics, "arms", name, "seconds"))
        what = ARMS[name][1] if name in ARMS else ""
        cells = [_cell(figures[name, metric]) for metric in shown]
        rows.append([join([label(name), element("small", what)]), *cells, _whole(seconds)])
    words = "Shares of held-out items with 95 % intervals"
    if counts := [found.n for found in figures.values() if found and found.n is not None]:
        low, high = min(counts), max(counts)
        words += f"; n = {low:,}" if low == high else f"; n = {low:,} to {high:,}"
        words += f". Fewer than {ENOUGH} items: take the figures as preliminary" if low < ENOUGH else ""
    words += (
        ". A dash: not measured. Seconds are of the arm's own training; every arm but the first starts from warm-up."
    )
    header = ["arm", *(METRICS[metric] for metric in shown), ("training", "seconds")]
    return join([table(header, rows, marked=len(rows) - 1), note(words)])


def _cell(estimate: Estimate | None) -> Html:
    if estimate is None:
        return DASH
    return join([f"{estimate.value:.2f}", element("small", estimate.interval) if estimate.interval else ""])


def _whole(value: float | None) -> Html:
    return DASH if value is None else page.escape(f"{value:,.0f}")


def _comparisons(metrics: Mapping[str, Any]) -> Html:
    found = comparisons(metrics)
    if not found:
        return note("No paired differences were computed.")
    words = "Both arms on the same items; paired bootstrap, 95 % intervals. The upright rule stands at no difference."
    return join([note(words), *_difference_tables(found)])


def _difference_tables(found: Sequence[Comparison]) -> list[Html]:
    """One for each arm and what it is compared with; the furthest arm is open."""
    ends = [end for c in found for end in c.difference[:3] if end is not None]
    span = (min(ends), max(ends))
    pairs: dict[tuple[str, str], list[Comparison]] = {}
    for arm in ordered({c.arm for c in found}):
        for comparison in found:
            if comparison.arm == arm:
                pairs.setdefault((arm, comparison.against), []).append(comparison)
    furthest = list(pairs)[-1][0]
    return [
        details(
            f"{label(arm)} against {label(against)}",
            table(
                ["measure", "difference", "reading", "value", "items"], [_difference(c, span) for c in rows], words=3
            ),
            opened=arm == furthest,
        )
        for (arm, against), rows in pairs.items()
    ]


def _difference(comparison: Comparison, span: tuple[float, float]) -> list[str]:
    difference = comparison.difference
    value, low, high = (difference.value if end is None else end for end in difference[:3])
    interval = signed_interval(difference)
    return [
        metric_label(comparison.metric),
        whisker(value, low, high, span, colour(comparison.arm)),
        "lost" if is_lost(comparison) else "higher" if low > 0 else "lower" if high < 0 else "no clear difference",
        join([f"{value:+.2f}", element("small", interval) if interval else ""]),
        _whole(difference.n),
    ]


def _seeds(metrics: Mapping[str, Any]) -> Html:
    """Empty for a run of one seed."""
    runs = [run for run in records(metrics, "seeds") if mapping(run, "arms")]
    if len(runs) < 2:
        return Html("")
    names = ordered({name for run in runs for name in arm_names(run)})
    values = {
        (name, metric): [found.value for run in runs if (found := figure(run, name, metric))]
        for name in names
        for metric in METRICS
    }
    shown = [metric for metric in METRICS if any(values[name, metric] for name in names)]

    def cell(found: list[float]) -> Html:
        if not found:
            return DASH
        spread = f"{min(found):.2f} to {max(found):.2f}"
        return join([f"{sum(found) / len(found):.2f}", element("small", spread)])

    rows = [[label(name), *(cell(values[name, metric]) for metric in shown)] for name in names]
    numbers = ", ".join(str(run.get("seed", "?")) for run in runs)
    words = f"Mean over {len(runs)} seeds ({numbers}), with the lowest and the highest."
    means = [table(["arm", *(METRICS[metric] for metric in shown)], rows, marked=len(rows) - 1), note(words)]
    if found := comparisons(metrics, "gains"):
        words = "Both arms on the same items of each seed; the bootstrap draws seeds, then items within them."
        means += [note(words), *_difference_tables(found)]
    return join(means)


# ---- curves ----


def _curves(metrics: Mapping[str, Any]) -> Html:
    names = [name for name in arm_names(metrics) if records(metrics, "arms", name, "curve")]
    if not names:
        return note("No learning curve was recorded.")
    lines = {
        x: {
            name: _line(label(name), records(metrics, "arms", name, "curve"), x, "sampled_story_exact", colour(name))
            for name in names
        }
        for x in ("step", "seconds")
    }
    by_unit: dict[str, list[Line]] = {}
    for name in names:
        by_unit.setdefault(step_unit(name), []).append(lines["step"][name])
    charts = [
        line_chart(drawn, title=f"By {x}", x_label=x, y_range=(0.0, 1.0), rules=[REACH])
        for x, drawn in {**by_unit, "seconds of the arm's own training": [*lines["seconds"].values()]}.items()
    ]
    words = "Held-out stories exactly right, sampled"
    if prompts := number(dig(metrics, "settings", "curve_prompts")):
        words += f", on the first {prompts:,.0f} held-out prompts; the table of the arms has all of them"
    words += f". The legend gives the last value; the rule stands at {REACH:.2f}."
    return join([note(words), element("div", *charts, style="charts"), _reach_table(metrics)])


def _reach_table(metrics: Mapping[str, Any]) -> Html:
    reach = mapping(metrics, "first_reach")
    if not reach:
        return note(f"When each arm first reached {REACH:.2f} was not recorded.")
    rows = []
    for name in ordered(reach):
        step, seconds = (number(dig(reach, name, key)) for key in ("step", "seconds"))
        rows.append([label(name), "not reached" if step is None else f"{step_unit(name)} {step:,.0f}", _whole(seconds)])
    return table(["arm", "at", "seconds"], rows, caption=f"First time at or above {REACH:.2f} on held-out prompts")


def _training(metrics: Mapping[str, Any]) -> Html:
    """Small multiples, one chart for what stands before the `/`; the furthest arm is open."""
    names = [name for name in arm_names(metrics) if records(metrics, "arms", name, "training")]
    if not names:
        return note("No training curves were recorded.")
    return join(details(label(name), _training_charts(metrics, name), opened=name == names[-1]) for name in names)


def _training_charts(metrics: Mapping[str, Any], name: str) -> Html:
    steps = records(metrics, "arms", name, "training")
    groups: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for step in steps for key in step if key != "step"):
        if any(number(step.get(key)) is not None for step in steps):
            groups.setdefault(_group(key), []).append(key)
    leading = [_group_chart(group, groups[group], steps) for group in LEADING_GROUPS if group in groups]
    others = [_group_chart(group, keys, steps) for group, keys in groups.items() if group not in LEADING_GROUPS]
    folded = details(f"{len(others)} more", element("div", *others, style="charts small")) if others else ""
    return join([element("div", *leading, style="charts small") if leading else "", folded])


def _group(key: str) -> str:
    """Which chart a figure belongs to. Means, spreads and shares of a reward are of three kinds, not of one."""
    first, *rest = key.split("/")
    return f"{first}: {rest[-1]}" if first == "rewards" and len(rest) > 1 else first


def _group_chart(group: str, keys: list[str], steps: list[Mapping[str, Any]]) -> Html:
    kind = group.partition(": ")[2]
    names = [key.partition("/")[2].removesuffix(f"/{kind}") or key for key in keys]
    fixed = {name: MODALITY_COLOURS[name] for name in names if name in MODALITY_COLOURS}
    spare = itertools.cycle([number for number in SPARE_COLOURS if number not in fixed.values()])
    lines = [
        _line(name.replace("_", " "), steps, "step", key, fixed[name] if name in fixed else next(spare))
        for name, key in zip(names, keys, strict=True)
    ]
    values = [y for line in lines for _, y in line.points]
    shares = group in ("reward", "rewards") and min(values) >= 0 and max(values) <= 1
    wide = not shares and min(values) > 0 and max(values) > 50 * min(values)
    title = group.replace("_", " ") + (" (logarithmic)" if wide else "")
    limits = (min(0.9, math.floor(10 * min(values)) / 10), 1.0) if shares else None  # rewards end close to 1
    return line_chart(lines, title=title, x_label="optimizer step", log_y=wide, y_range=limits, size=(360, 210))


def _line(name: str, rows: Iterable[Mapping[str, Any]], x: str, y: str, colour: int) -> Line:
    """Rows without either number are left out; `low` and `high`, where a row has them, make the band."""
    read = [[number(row.get(key)) for key in (x, y, "low", "high")] for row in rows]
    points = [(at, value) for at, value, *_ in read if at is not None and value is not None]
    band = [(at, low, high) for at, _, low, high in read if at is not None and low is not None and high is not None]
    return Line(name, points, band, colour)


def _stages(metrics: Mapping[str, Any]) -> Html:
    """The image tokenizer, the warm-up and what they were fed."""
    parts: list[str] = []
    for name, title in (("image_tokenizer", "Image tokenizer"), ("warmup", "Warm-up")):
        stage = mapping(metrics, "stages", name)
        figures = {key.replace("_", " "): value for key, value in stage.items() if number(value) is not None}
        parts.append(element("h3", title))
        if figures:
            parts.append(facts(figures))
        elif not stage:
            parts.append(note("Nothing was recorded."))
        if loss := records(stage, "loss"):
            lines = [_line(kind, loss, "step", kind, c) for kind, c in MODALITY_COLOURS.items()]
            chart = line_chart(lines, title="Warm-up loss, nats a token", x_label="optimizer step")
            parts.append(element("div", chart, style="charts"))
    return join([*parts, element("h3", "Tokens seen"), _tokens(metrics)])


def _tokens(metrics: Mapping[str, Any]) -> Html:
    tokens = mapping(metrics, "data", "tokens")
    counts = {kind: [number(dig(tokens, kind, modality)) or 0.0 for modality in ("text", "image")] for kind in tokens}
    total = sum(map(sum, counts.values()))
    if not total:
        return note("Tokens seen were not counted.")
    rows = [
        [kind.replace("_", " "), f"{text:,.0f}", f"{image:,.0f}", f"{100 * (text + image) / total:.0f} %"]
        for kind, (text, image) in counts.items()
    ]
    return table(["kind", "text tokens", "image tokens", "share"], rows)


# ---- samples ----


def _samples(samples: Sequence[Mapping[str, Any]]) -> Html:
    if not samples:
        return note("No samples were kept.")
    words = "Beside each text and picture: the reward of that segment, then what it is made of. A dash: does not apply."
    return join([note(words), details(f"{len(samples)} prompts", *map(_sample, samples))])


def _sample(sample: Mapping[str, Any]) -> Html:
    answers = mapping(sample, "answers")
    columns = [column(sample, name, label(name), colour(name)) for name in ordered(answers)]
    body = element("div", *columns, style="answers") if columns else note("No answers.")
    return element("article", document(sample.get("prompt")), body, style="sample")


# ---- settings ----


def _settings(metrics: Mapping[str, Any]) -> Html:
    parts: list[str] = []
    if command := metrics.get("command"):
        parts += [note("This run again:"), element("pre", str(command))]
    given = {name: metrics[name] for name in ("seed", "device", "created") if metrics.get(name) is not None}
    if given:
        parts.append(facts(given))
    for name in ("versions", "settings"):
        values = mapping(metrics, name)
        parts.append(details(name.capitalize(), facts(values)) if values else note(f"No {name} were recorded."))
    return join(parts)
