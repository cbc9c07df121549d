"""The page of an evaluation: figures beside the published ones, what became of every score, answers and verdicts.

It is made of the `results.json` and `samples.json` of a run's folder, and asks the network for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs.whole import write_atomically
from ..eval.folder import read_json
from ..eval.results import RESULTS, SAMPLES
from ..models.documents.document import InterleavedDocument
from ..models.documents.rendering import document_html
from . import page
from .page import Html, details, element, facts, join, note, section, table

REPORT = "report.html"
DASH = Html("&ndash;")
OPEN_SAMPLES = 3
"""So many samples are shown at once; the others are folded away."""


def write_report(folder: Path) -> str:
    """Writes `report.html` into a run's folder; returns the figures as lines of text.

    Raises InputError where the folder holds no results.
    """
    results, samples = read_json(folder / RESULTS), read_json(folder / SAMPLES)
    write_atomically(folder / REPORT, report_html(results, samples))
    return f"{summary(results)}\n{folder / REPORT}"


def report_html(results: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> str:
    main, *others = results["tables"]
    parts = {
        "scores": ("Scores", join([_table(main), *map(note, results["caveats"])])),
        **{f"table-{number}": (part["title"], _table(part)) for number, part in enumerate(others, 1)},
        "counts": ("Where the scores have gone", _counts(results["accounting"])),
        "samples": ("Answers and verdicts", _samples(samples, results["highest"])),
        "manifest": ("Manifest", facts(results["manifest"])),
    }
    links = join(Html(f'<a href="#{name}">{page.escape(heading)}</a>') for name, (heading, _) in parts.items())
    return page.page(
        results["title"],
        element("p", "limner eval", style="kicker"),
        element("h1", results["title"]),
        element("p", _lead(results), style="lead"),
        element("p", _conditions(results)),
        element("nav", links),
        *(section(name, heading, body) for name, (heading, body) in parts.items()),
    )


def summary(results: Mapping[str, Any]) -> str:
    """The run's own rows and what they leave out, as text."""
    lines = []
    for part in results["tables"]:
        for name, cells in part["rows"]:
            figures = [
                f"{column} {_number(cell['value'])} [{_number(cell['low'])}, {_number(cell['high'])}] of {cell['n']}"
                for column, cell in zip(part["columns"], cells, strict=True)
                if cell
            ]
            lines.append(f"{name}: {'; '.join(figures) or 'no scores'}")
    counts = results["accounting"]
    failed = ", ".join(f"{count} {reason}" for reason, count in counts["failed"].items())
    noted = ", ".join(f"{n['total']} {name} in {n['scores']} scores" for name, n in counts["notes"].items())
    lines.append(f"{counts['scored']} of {counts['scores_wanted']} scores; missing: {failed or 'none'}")
    lines.append(f"answers cut by the length limit: {counts['not_ended']}" + (f"; {noted}" if noted else ""))
    if written := counts.get("writing"):
        lines.append("while the answers were written: " + ", ".join(f"{n} {name}" for name, n in written.items()))
    return "\n".join(lines)


def no_score(folder: Path) -> str:
    """Why a run has not one score; empty where it has some."""
    counts = read_json(folder / RESULTS)["accounting"]
    if counts["scored"]:
        return ""
    failed = [f"{count} {reason}" for reason, count in counts["failed"].items()]
    reason, words = next(iter(counts.get("first", {}).items()), ("", ""))
    said = f"; the first: {words}" if reason and words else ""
    return f"{folder}: not one of {counts['scores_wanted']} scores: {', '.join(failed) or 'nothing to score'}{said}"


def _lead(results: Mapping[str, Any]) -> str:
    part = results["tables"][0]
    name, cells = next(iter(part["rows"]), ("", [None] * len(part["columns"])))
    known = [(column, cell) for column, cell in zip(part["columns"], cells, strict=True) if cell]
    if not known:
        return "No item has a score."
    column, cell = next((one for one in known if one[0] == part.get("main")), known[0])
    counts = results["accounting"]
    value, low, high = (_number(cell[key]) for key in ("value", "low", "high"))
    said = f"{name.capitalize()}: {column.replace('_', ' ')} {value}, 95 % interval {low} to {high}. "
    said += f"{counts['scored']:,} of {counts['scores_wanted']:,} scores were given"
    if counts["parse_rate"] is not None:
        said += f"; {counts['parse_rate']:.1%} of the judge's replies held one"
    return said + "."


def _conditions(results: Mapping[str, Any]) -> str:
    manifest = results["manifest"]
    judge = manifest["judge"]
    if not isinstance(judge, str):
        judge = f"{judge['model']} {judge['revision'] or '(revision not given)'}"
    model = manifest.get("model", {}).get("name") or manifest.get("answers", {}).get("file", "")
    return f"Answers: {model}. Judge: {judge}. Begun {manifest['created']}, finished {results['finished']}."


def _table(part: Mapping[str, Any]) -> Html:
    rows: list[list[str]] = [[name, *map(_cell, cells)] for name, cells in part["rows"]]
    published = [[name, *map(_number, figures)] for name, figures in part["published"]]
    caption = part["title"] + ", with 95 % bootstrap intervals over items"
    source = note(f"Published: {part['source']}.") if published else Html("")
    drawn = table(["", *part["columns"]], rows + published, caption=caption, marked=0 if published else None)
    return join([drawn, source])


def _cell(cell: Mapping[str, Any] | None) -> Html:
    if cell is None:
        return DASH
    interval = element("small", f"{_number(cell['low'])} to {_number(cell['high'])}")
    return join([_number(cell["value"]), interval, element("small", f"n {cell['n']:,}")])


def _number(value: float) -> str:
    return f"{value:.2f}"


def _counts(counts: Mapping[str, Any]) -> Html:
    rate = counts["parse_rate"]
    known = {
        "items": counts["items"],
        "answers": counts["answered"],
        "answers cut by the length limit": counts["not_ended"],
        "scores wanted": counts["scores_wanted"],
        "scores": counts["scored"],
        "judge's replies": counts["replies"],
        "replies with a score": DASH if rate is None else f"{rate:.1%}",
        "judge's tokens, read and written": f"{counts['prompt_tokens']:,} and {counts['completion_tokens']:,}",
    }
    failed = [[reason, f"{count:,}"] for reason, count in counts["failed"].items()]
    seen = [[name, f"{n['scores']:,}", f"{n['total']:,}"] for name, n in counts["notes"].items()]
    written = [[name, f"{count:,}"] for name, count in counts.get("writing", {}).items()]
    return join(
        [
            facts(known),
            table(["While the answers were written", "in total"], written) if written else Html(""),
            table(["No score, by reason", "scores"], failed) if failed else note("No score is missing."),
            table(["Judged otherwise than in full", "scores", "in total"], seen) if seen else Html(""),
        ]
    )


def _samples(samples: Sequence[Mapping[str, Any]], highest: float) -> Html:
    if not samples:
        return note("None were asked for.")
    lead = note("Of each category from its worst to its best; pictures are shrunk.")
    drawn = [_sample(sample, highest, opened=number < OPEN_SAMPLES) for number, sample in enumerate(samples)]
    return join([lead, *drawn])


def _sample(sample: Mapping[str, Any], highest: float, opened: bool) -> Html:
    verdicts = sample["verdicts"]
    chips = element("div", *(_chip(verdict, highest) for verdict in verdicts), style="chips")
    reference = [element("p", f"Correct answer: {sample['reference']}")] if sample["reference"] else []
    words = [
        element("div", element("h3", verdict["aspect"].replace("_", " ")), element("pre", verdict["words"]))
        for verdict in verdicts
        if verdict["words"]
    ]
    body = [
        chips,
        *(element("h3", "Question"), _document(sample["prompt"]), *reference),
        *(element("h3", "Answer"), _document(sample["answer"])),
        *([details("The judge's words", *words, opened=opened)] if words else []),
    ]
    return details(f"{sample['category']}: {sample['id']}", element("div", *body, style="sample"), opened=opened)


def _document(value: Any) -> Html:
    if value is None:
        return note("A picture of it is missing or does not open.")
    document = InterleavedDocument.from_json(value)
    return Html(document_html(document)) if document.segments else note("Empty.")


def _chip(verdict: Mapping[str, Any], highest: float) -> Html:
    score, name = verdict["score"], verdict["aspect"].replace("_", " ")
    if score is None:
        return element("span", f"{name} ", element("b", verdict["failure"]), style="chip none")
    style = "good" if score >= 0.9 * highest else "fair" if score >= 0.5 * highest else "poor"
    shown = f"{score:g} of {highest:g}" + (f" ({_noted(verdict['notes'])})" if verdict["notes"] else "")
    return element("span", f"{name} ", element("b", shown), style=f"chip {style}")


def _noted(notes: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in notes.items())
