"""The report of insert or generate: figures by arm, gains, the confusion of the three choices, curves, samples.

`study` is what `studies.insert_or_generate.summarise` returns and results.json holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..models.documents.document import InterleavedDocument
from ..models.documents.rendering import document_html
from . import page
from .page import Html, Line, element, facts, join, line_chart, note, section

METRICS = {
    "sampled.choice": "choices, sampled",
    "greedy.choice": "choices, greedy",
    "sampled.insert": "insert",
    "sampled.generate": "generate",
    "sampled.leave": "leave",
    "sampled.picture_exact": "exact, of pictures to draw",
    "sampled.drawn_exact": "exact, of those drawn",
    "sampled.sentence_exact": "sentences exact",
    "sampled.story_exact": "stories exact",
    "understanding.candidates": "questions about candidates",
    "understanding.vqa": "questions",
    "understanding.caption": "captions",
    "text_to_image.exact": "text-to-image",
}
"""Rows of the first table; those without a word for it are sampled at temperature 1."""
GAINS = ("sampled.choice", "greedy.choice", "sampled.picture_exact", "sampled.story_exact")
Rows = list[list[str]]


def insertion_markdown(study: Mapping[str, Any]) -> str:
    """All tables, ready to be put into documentation."""
    parts = [f"## {study['title']}", _conditions(study), _markdown(*_figures(study)), _markdown(*_gains(study))]
    for arm in study["arms"].values():
        parts += [f"### Confusion: {arm['label']}, sampled", _markdown(*_confusion(arm, "sampled"))]
        parts += [_faults(arm)]
    return "\n\n".join(parts) + "\n"


def insertion_html(study: Mapping[str, Any]) -> str:
    """The whole page; it asks the network for nothing."""
    confusions = []
    for arm in study["arms"].values():
        for way in arm["confusion"]:
            confusions += [element("h3", f"{arm['label']}, {way}"), page.table(*_confusion(arm, way))]
        confusions.append(note(_faults(arm)))
    charts = [
        line_chart(_lines(study, metric), title=title, x_label="seconds of training", y_range=(0, 1))
        for metric, title in (
            ("choice", "Held-out choices right, sampled"),
            ("picture_exact", "Pictures exact, sampled"),
        )
    ]
    samples = [
        join([element("h3", arm["label"]), *(_sample(value) for value in arm["samples"])])
        for arm in study["arms"].values()
    ]
    return page.page(
        study["title"],
        element("p", "limner insert-or-generate", style="kicker"),
        element("h1", study["title"]),
        element("p", _conditions(study)),
        section("figures", "Figures", page.table(*_figures(study))),
        section("gains", "Gains", page.table(*_gains(study), words=2)),
        section("confusion", "What was wanted, and what was done", *confusions),
        section("curves", "While training", element("div", *charts, style="charts")),
        section("samples", "Samples of the first seed", *samples),
        section("settings", "Settings", facts(study["settings"])),
    )


def _figures(study: Mapping[str, Any]) -> tuple[list[str], Rows]:
    arms = study["arms"].values()
    rows = [
        [words, *(_estimate(arm["figures"][metric]) if metric in arm["figures"] else "-" for arm in arms)]
        for metric, words in METRICS.items()
        if any(metric in arm["figures"] for arm in arms)
    ]
    rows.append(["seconds of training", *(", ".join(f"{seconds:,.0f}" for seconds in arm["seconds"]) for arm in arms)])
    return ["", *(arm["label"] for arm in arms)], rows


def _gains(study: Mapping[str, Any]) -> tuple[list[str], Rows]:
    labels = {name: arm["label"] for name, arm in study["arms"].items()}
    found = {(gain["arm"], gain["against"], gain["metric"]): gain for gain in study["gains"]}
    pairs = list(dict.fromkeys((arm, against) for arm, against, _ in found))
    rows = [
        [labels[arm], labels[against]]
        + [_estimate(found[key], "+") if (key := (arm, against, metric)) in found else "-" for metric in GAINS]
        for arm, against in pairs
    ]
    return ["arm", "over", *(METRICS[metric] for metric in GAINS)], rows


def _confusion(arm: Mapping[str, Any], way: str) -> tuple[list[str], Rows]:
    """Shares of the steps that wanted a thing, and how many they were."""
    rows = []
    for wanted, done in arm["confusion"][way].items():
        total = sum(done.values())
        rows.append([wanted, *(f"{count / max(1, total):.2f}" for count in done.values()), f"{total:,}"])
    return ["wanted", *next(iter(arm["confusion"][way].values())), "steps"], rows


def _estimate(figure: Mapping[str, Any], sign: str = "") -> str:
    spread = f" ({figure['lowest']:.2f} to {figure['highest']:.2f})" if figure["seeds"] > 1 else ""
    return f"{figure['value']:{sign}.2f} [{figure['low']:{sign}.2f}, {figure['high']:{sign}.2f}]{spread}"


def _faults(arm: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(arm["faults"].items())) or "none"
    return f"Markers that placed nothing, in all sampled answers: {counts}."


def _conditions(study: Mapping[str, Any]) -> str:
    seeds = sorted({seed for arm in study["arms"].values() for seed in arm["seeds"]})
    count = study["settings"]["world"]["heldout_prompts"]
    words = f"Seeds {', '.join(map(str, seeds))}; {count} held-out prompts each; in brackets a bootstrap 95 % interval "
    if len(seeds) > 1:
        words += "over seeds and held-out prompts, in parentheses the lowest and the highest seed. "
    else:
        words += "over held-out prompts. "
    return words + (
        "A choice is right where the candidate that fits is inserted, a picture is drawn where none fits, and none "
        "stands where none is wanted."
    )


def _lines(study: Mapping[str, Any], metric: str) -> list[Line]:
    return [
        Line(
            f"{arm['label']}, seed {seed}",
            [(point["seconds"], point[metric]) for point in points],
            colour=number,
        )
        for number, arm in enumerate(study["arms"].values())
        for seed, points in arm["curves"].items()
    ]


def _sample(value: Any) -> Html:
    return Html(document_html(InterleavedDocument.from_json(value)))


def _markdown(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
