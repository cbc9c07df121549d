"""A study's tables and figure: Markdown for documentation, an HTML page, and the figure as an SVG of its own.

`study` is what `studies.summary.summarise` returns and results.json holds. An arm that has not been run keeps its row,
with dashes, and is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.documents.rendering import PAGE_CSS
from . import page
from .page import COLOURS, Html, Line, element, facts, join, line_chart, note, section

STORY = (("sampled", "sampled.story_exact"), ("greedy", "greedy.story_exact"))
PARTS = {
    "sentences": "sampled.sentence_exact",
    "pictures": "sampled.image_exact",
    "structure": "sampled.structure",
    "questions": "understanding.vqa",
    "captions": "understanding.caption",
    "text-to-image": "text_to_image.exact",
}
"""Columns of the second table: what stories are made of, and the abilities to keep."""
RELEASED = {
    "known things": "sampled.story_exact_known",
    "new pairs": "sampled.story_exact_new_pair",
    "things never told of": "sampled.story_exact_never_told",
    "answers right": "kept.right",
    "agreement": "kept.agreement",
    "chat form": "kept.chat",
    "English, nats a token": "kept.nats",
}
"""Further columns, where an arm has them: kinds of held-out requests, and what a released model could before."""
PANEL = (460, 250)
"""Pixels of a panel of the figure."""
LEGEND_LINE = 17
Cell = list[str]
"""A figure, and what stands small beside it."""
NONE = ["-"]


def table_markdown(study: Mapping[str, Any]) -> str:
    """All tables of the study, ready to be put into documentation."""
    parts = [f"## {_plain(study['title'])}", _plain(_conditions(study))]
    for table in study["tables"]:
        parts.append(f"### {_plain(table['title'])}")
        parts += [_markdown(*_main_table(study, table)), _markdown(*_parts_table(study, table))]
        parts += [_plain(table["note"])] if table["note"] else []
    return "\n\n".join([*parts, "![Held-out stories right, by seconds of training](figure.svg)"]) + "\n"


def study_html(study: Mapping[str, Any]) -> str:
    """The whole page; it asks the network for nothing."""
    sections = []
    for number, table in enumerate(study["tables"]):
        header, rows = _main_table(study, table)
        words = 1 + len(table["columns"])
        charts = [
            line_chart(lines, title=title, x_label=label, y_range=(0, 1), rules=(study["reach"],))
            for title, label, lines in (
                ("Held-out stories right, sampled", "seconds of training", _lines(study, table, "seconds")),
                ("The same by rollout batches", "rollout batches", _lines(study, table, "step")),
            )
        ]
        body = [
            page.table(header, [[_html(cell) for cell in row] for row in rows], words=words),
            note(table["note"]) if table["note"] else "",
            element("div", *charts, style="charts"),
        ]
        header, rows = _parts_table(study, table)
        body += [element("h3", "What stories are made of, the abilities to keep, and the cost")]
        body += [page.table(header, [[_html(cell) for cell in row] for row in rows])]
        sections.append(section(f"table-{number + 1}", table["title"], *body))
    return page.page(
        study["title"],
        element("p", "limner study", style="kicker"),
        element("h1", study["title"]),
        element("p", _conditions(study)),
        *sections,
        section("settings", "Settings", facts(study["settings"])),
    )


def figure_svg(study: Mapping[str, Any]) -> str:
    """Held-out curves, one panel a table: means over seeds, and the band from the lowest to the highest."""
    panels = [(table["title"], lines) for table in study["tables"] if (lines := _lines(study, table, "seconds"))]
    columns = min(2, len(panels)) or 1
    width, height = PANEL
    row = height + 34 + LEGEND_LINE * max((len(lines) for _, lines in panels), default=1)
    total = (columns * (width + 20) + 20, max(1, -(-len(panels) // columns)) * row + 10)
    drawn = [
        f'<g class="chart" transform="translate({20 + (number % columns) * (width + 20)} {number // columns * row})">'
        f"{_panel(title, lines, study['reach'])}</g>"
        for number, (title, lines) in enumerate(panels)
    ]
    nothing = '<text x="20" y="24" class="title">No curve has been measured yet.</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" width="{total[0]}" '
        f'height="{total[1]}" role="img">'
        f"<title>{page.escape(study['title'])}</title><style>{_figure_css()}</style>"
        f'<rect width="100%" height="100%" class="paper"/>{"".join(drawn) or nothing}</svg>\n'
    )


def _figure_css() -> str:
    """Charts as on the page, in its light colours, every variable resolved: not all that draws SVG knows variables."""
    styles = PAGE_CSS + page.style()
    said = re.findall(r"(?<![\w-])--([\w-]++): ((?:[^;-]|-(?!-)|(?<=\()--)++);", styles)
    values = dict(reversed(said))  # the first of each is the light one
    rules = [_FIGURE_CSS, *re.findall(r"\.line\.c\d \{[^}]*\}", styles)]
    rules += [
        f".line.c{i} {{ stroke: var(--c{i}); }} .band.c{i}, .dot.c{i} {{ fill: var(--c{i}); }}" for i in range(COLOURS)
    ]
    return re.sub(r"var\(--([\w-]+)\)", lambda match: values[match[1]], "\n".join(rules))


_FIGURE_CSS = """
.paper { fill: var(--paper); }
text { font: 10px var(--sans); fill: var(--muted); }
.title { font: 600 13px var(--sans); fill: var(--ink); }
.name { font: 11.5px var(--sans); fill: var(--ink); }
.grid { stroke: var(--line); }
.axis { stroke: var(--muted); }
.rule { stroke: var(--muted); stroke-dasharray: 2 3; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.band { opacity: 0.14; }"""


def _panel(title: str, lines: Sequence[Line], reach: float) -> str:
    chart = line_chart(lines, title=title, x_label="seconds of training", y_range=(0, 1), rules=(reach,), size=PANEL)
    start = chart.index(">", chart.index("<svg")) + 1
    inside = chart[start : chart.index("</svg>")]  # the page's chart without its frame, which a page would size
    names = "".join(
        f'{page.key(line, 10, 38, y - 4)}<text x="46" y="{y}" class="name">{page.escape(line.name)}</text>'
        for y, line in ((PANEL[1] + 40 + LEGEND_LINE * number, line) for number, line in enumerate(lines))
    )
    heading = f'<text x="10" y="18" class="title">{page.escape(title)}</text>'
    return f'{heading}<g transform="translate(0 26)">{inside}</g>{names}'


def _lines(study: Mapping[str, Any], table: Mapping[str, Any], across: str) -> list[Line]:
    """Curves of a table's arms, by `seconds` or by `step`; a step of the control is no rollout batch."""
    lines, colours = [], iter(range(1, 1000))
    for name in dict.fromkeys(row["arm"] for row in table["rows"]):
        arm = study["arms"][name]
        if not arm["curve"] or (across == "step" and arm["kind"] != "grpo"):
            continue
        points = [(point[across], point["value"]) for point in arm["curve"]]
        band = [(point[across], point["lowest"], point["highest"]) for point in arm["curve"]]
        colour = 0 if arm["kind"] == "control" else next(colours)
        lines.append(Line(arm["label"], points, band if len(arm["seeds"]) > 1 else (), colour))
    return lines


# ---- tables as rows of cells ----


def _main_table(study: Mapping[str, Any], table: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    reach = f"{study['reach']:.2f}"
    header = ["arm", *table["columns"], "sampled", "gain", "greedy", "gain, greedy"]
    header += [f"batches to {reach}", f"seconds to {reach}"]
    rows = []
    for row in table["rows"]:
        arm = study["arms"][row["arm"]]
        over = f"over {study['arms'][row['against']]['label']}" if row["against"] else ""
        cells: list[Cell] = [_name(study, arm), *([mark] for mark in row["marks"])]
        for _, metric in STORY:
            cells += [_estimate(arm["figures"].get(metric)), _gain(row["gain"].get(metric), over)]
        cells += [_reach(arm, "step") if arm["kind"] == "grpo" else NONE, _reach(arm, "seconds")]
        rows.append(cells)
    if not any(row["against"] for row in table["rows"]):
        keep = [place for place, name in enumerate(header) if not name.startswith("gain")]
        return [header[place] for place in keep], [[row[place] for place in keep] for row in rows]
    return header, rows


def _parts_table(study: Mapping[str, Any], table: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    arms = [study["arms"][name] for name in dict.fromkeys(row["arm"] for row in table["rows"])]
    found = {metric for arm in arms for metric in arm["figures"]}
    further = {name: metric for name, metric in RELEASED.items() if metric in found}
    own = {name: metric for name, metric in PARTS.items() if metric in found or not further}
    columns = own | further
    rows = [
        [
            _name(study, arm),
            *(_estimate(arm["figures"].get(metric)) for metric in columns.values()),
            _range(arm["seconds"]),
        ]
        for arm in arms
    ]
    return ["arm", *columns, "seconds"], rows


def _name(study: Mapping[str, Any], arm: Mapping[str, Any]) -> Cell:
    done, wanted = len(arm["seeds"]), len(study["seeds"])
    return [arm["label"], "" if done == wanted else f"({done} of {wanted} seeds)"]


def _estimate(figure: Mapping[str, Any] | None) -> Cell:
    if figure is None:
        return NONE
    spread = [f"({figure['lowest']:.2f}-{figure['highest']:.2f})"] if figure["seeds"] > 1 else []
    return [f"{figure['value']:.2f}", f"[{figure['low']:.2f}, {figure['high']:.2f}]", *spread]


def _gain(figure: Mapping[str, Any] | None, over: str) -> Cell:
    if figure is None:
        return NONE
    return [f"{figure['value']:+.2f}", f"[{figure['low']:+.2f}, {figure['high']:+.2f}]", over]


def _reach(arm: Mapping[str, Any], across: str) -> Cell:
    reach = arm["reach"]
    if reach is None:
        return NONE
    if not reach["seeds"]:
        return ["never"]
    some = [f"({reach['seeds']} of {reach['of']} seeds)"] if reach["seeds"] < reach["of"] else []
    return [*_range(reach[across]), *some]


def _range(spread: Mapping[str, float] | None) -> Cell:
    if spread is None:
        return NONE
    shown = [f"{spread[key]:,.0f}" for key in ("value", "lowest", "highest")]
    return [shown[0], f"({shown[1]}-{shown[2]})"] if shown[1] != shown[2] else shown[:1]


def _conditions(study: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, study["seeds"]))
    if len(study["seeds"]) > 1:
        words = (
            f"Means over seeds {seeds}; in brackets a bootstrap 95 % interval that resamples seeds and held-out items, "
            "in parentheses the lowest and the highest seed."
        )
    else:
        words = f"Seed {seeds}; in brackets a bootstrap 95 % interval over held-out items."
    own = [f"{arm['label']}: {arm['iterations']}" for arm in study["arms"].values() if arm["iterations"]]
    batches = f"{study['iterations']} rollout batches" + (f" ({', '.join(own)})" if own else "")
    words += (
        f" Every GRPO arm takes {batches} from its seed's warm-up. Sampled is temperature "
        "1; a gain is taken item by item; seconds are those of training, up to where the held-out curve first reaches "
        f"{study['reach']:.2f} and in all."
    )
    if missing := study["missing"]:
        left = [f"{study['arms'][name]['label']} (seeds {', '.join(map(str, s))})" for name, s in missing.items()]
        words += f" Not run yet: {'; '.join(left)}."
    return words


def _markdown(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [header, ["---"] * len(header), *([" ".join(filter(None, cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """One line of Markdown that holds no HTML and no column of its own."""
    return " ".join(text.replace("<", "&lt;").replace("|", "\\|").split())


def _html(cell: Cell) -> Html:
    return join([cell[0] if cell != NONE else Html("&ndash;"), *(element("small", part) for part in cell[1:] if part)])
