"""The tables and the figure of a study: complete, well-formed, honest about what is missing."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from limner.report.study import PARTS, figure_svg, study_html, table_markdown

HOSTILE = 'x</style><script>alert("1")</script>|y'


def figure(value: float) -> dict:
    ends = {"low": value - 0.05, "high": value + 0.05, "lowest": value - 0.02, "highest": value + 0.02}
    return {"value": value, **ends, "n": 600, "seeds": 3}


def spread(value: float) -> dict:
    return {"value": value, "lowest": value - 5, "highest": value + 5}


def arm(label: str, value: float, kind: str = "grpo", reached: int = 2) -> dict:
    metrics = ("sampled.story_exact", "greedy.story_exact", *PARTS.values())
    at = {"step": spread(15), "seconds": spread(110)} if reached else {"step": None, "seconds": None}
    return {
        "label": label,
        "kind": kind,
        "of": None,
        "iterations": None,
        "seeds": [0, 1, 2],
        "figures": {metric: figure(value) for metric in metrics},
        "seconds": spread(1500),
        "reach": {"seeds": reached, "of": 3, **at},
        "curve": [
            {"step": 5 * i, "seconds": 36.0 * i, "value": value * i / 9, "lowest": 0.0, "highest": value}
            for i in range(10)
        ],
    }


def study(label: str = "+ process") -> dict:
    nothing = {"seeds": [], "figures": {}, "seconds": None, "reach": None, "curve": []}
    gain = {metric: figure(0.6) for metric in ("sampled.story_exact", "greedy.story_exact")}
    rows = [
        {"arm": "warmup", "marks": ["x", ""], "against": None, "gain": {}},
        {"arm": "full", "marks": ["x", "x"], "against": "warmup", "gain": gain},
        {"arm": "control", "marks": ["xx", ""], "against": "warmup", "gain": {}},
        {"arm": "image", "marks": ["x", label], "against": "warmup", "gain": {}},
    ]
    return {
        "title": f"Ablations {label}",
        "seeds": [0, 1, 2],
        "iterations": 60,
        "reach": 0.5,
        "arms": {
            "warmup": {**arm("warm-up", 0.13, "warmup"), "reach": None, "curve": []},
            "full": arm(label, 0.85),
            "control": arm("more warm-up", 0.14, "control", reached=0),
            "image": {"label": "+ image", "kind": "grpo", "of": None, "iterations": 40, **nothing},
        },
        "tables": [
            {"title": f"Rewards {label}", "columns": ["warm-up", "GRPO"], "note": "As in the paper.", "rows": rows},
            {
                "title": "Bare",
                "columns": [],
                "note": "",
                "rows": [{**rows[1], "marks": [], "against": None, "gain": {}}],
            },
        ],
        "missing": {"image": [0, 1, 2]},
        "settings": {"grpo": {"learning_rate": 3e-4}, "title": label},
    }


def test_the_markdown_tables():
    text = table_markdown(study())
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    header, _, warm, full, control, image = tables[0].splitlines()
    assert header.startswith("| arm | warm-up | GRPO | sampled | gain | greedy | gain, greedy | batches to 0.50 |")
    assert "| 0.13 [0.08, 0.18] (0.11-0.15) | - |" in warm
    assert "+0.60 [+0.55, +0.65] over warm-up" in full and "| 15 (10-20) (2 of 3 seeds) |" in full
    assert control.endswith("| - | never |") and "| 1,500 (1,495-1,505) |" in tables[1]
    assert image.startswith("| + image (0 of 3 seeds) |") and image.count("| - ") == 6
    assert "gain" not in tables[2]
    assert "Every GRPO arm takes 60 rollout batches (+ image: 40) from" in text
    assert "Not run yet: + image (seeds 0, 1, 2)." in text and "As in the paper." in text


def test_the_page_refers_to_nothing_outside():
    html = study_html(study())
    assert not re.search(r"https?:|@import|url\(|<script|<link|nan\b", html)
    assert html.count("<table") == 4 and html.count('<figure class="chart">') == 4
    assert "Not run yet" in html and "learning_rate" in html


def test_the_figure_stands_alone():
    text = figure_svg(study())
    root = ElementTree.fromstring(text)
    names = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"+ process", "more warm-up", "Rewards + process", "seconds of training"} <= set(names)
    assert text.count('class="chart"') == 2 and text.count('<path class="band') == 3
    assert not re.search(r"https?:|var\(", text.replace("http://www.w3.org/2000/svg", ""))
    width, height = (float(end) for end in root.attrib["viewBox"].split()[2:])
    for group in root.findall("{http://www.w3.org/2000/svg}g"):
        x, y = map(float, re.findall(r"[\d.]+", group.attrib["transform"]))
        assert 0 <= x <= width - 460 and 0 <= y < height - 250


def test_a_study_of_which_nothing_has_been_run():
    empty = study()
    nothing = {"seeds": [], "figures": {}, "seconds": None, "reach": None, "curve": []}
    empty["arms"] = {name: {**found, **nothing} for name, found in empty["arms"].items()}
    assert "(0 of 3 seeds)" in table_markdown(empty) and "Nothing was recorded" in study_html(empty)
    assert "No curve has been measured" in "".join(ElementTree.fromstring(figure_svg(empty)).itertext())


@pytest.mark.parametrize("render", [study_html, figure_svg, table_markdown])
def test_hostile_labels_stay_text(render):
    text = render(study(HOSTILE))
    assert "<script" not in text and "&lt;script" in text
    if render is figure_svg:
        ElementTree.fromstring(text)
    if render is table_markdown:
        assert "\\|y" in text
