import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.report import page
from limner.report.demo import report_html, write_report
from limner.report.metrics import ARMS, METRICS, headline, verdicts
from limner.report.page import Line, line_chart

from ..rewards.exact import STORIES

HOSTILE = '</style></svg><script>alert(1)</script>"><img src=x onerror=alert(1)>'
ABILITIES = ("understanding.vqa", "understanding.caption", "text_to_image.exact")


class Reader(HTMLParser):
    """The tags of a page, its text, and that every element is closed where it should be."""

    VOID = {"meta", "img", "path", "circle"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.seen = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.seen += data


def estimate(value: float, n: int = 600) -> dict:
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def arm(story: float, ability: float = 0.98) -> dict:
    record: dict = {"seconds": 300.0, "sampled": {}, "greedy": {}, "understanding": {}, "text_to_image": {}}
    for metric in METRICS:
        where, name = metric.split(".")
        if where != "best_temperature":
            record[where][name] = estimate(ability if metric in ABILITIES else story)
    return record


def training(steps: int = 40) -> list[dict]:
    rng = random.Random(0)
    rows = []
    for step in range(steps):
        risen = 1 - math.exp(-step / 15)
        row = {
            "step": step,
            "replay_gap/text": 10 ** rng.uniform(-6, -4),
            "replay_gap/image": 10 ** rng.uniform(-6, -4),
        }
        for i, name in enumerate(STORIES):
            row[f"rewards/{name.replace('/', '_')}"] = min(1.0, (0.2 + 0.1 * i) + 0.5 * risen + rng.gauss(0, 0.03))
        for name, scale in (("kl", 0.02), ("entropy", 0.4), ("ratio", 1.0), ("clip_fraction", 0.1)):
            for modality in ("text", "image"):
                row[f"{name}/{modality}"] = scale * rng.uniform(0.5, 1.0)
        rows.append(row | {"learning_rate": 3e-4 * (1 - step / steps), "note": "not a number", "loss": math.nan})
    return rows


def metrics() -> dict:
    arms = {name: arm(story) for name, story in zip(ARMS, (0.04, 0.1, 0.42, 0.68, 0.81), strict=True)}
    for name in ("warmup", "control"):
        arms[name]["best_temperature"] = {"story_exact": estimate(0.2)}
    for name, record in arms.items():
        final = record["sampled"]["story_exact"]["value"]
        record["curve"] = [
            {"step": s, "seconds": 5.2 * s, "sampled_story_exact": 0.04 + (final - 0.04) * (1 - math.exp(-s / 18))}
            for s in range(0, 61, 10)
        ]
        if name.startswith("grpo"):
            record["training"] = training()
    differences = [
        {
            "arm": name,
            "against": "warmup",
            "metric": metric,
            "value": gain,
            "low": gain - 0.03,
            "high": gain + 0.03,
            "n": 600,
        }
        for name, story in (("control", 0.06), ("grpo_outcome", 0.64), ("grpo_process", 0.77))
        for metric, gain in (
            ("sampled.story_exact", story),
            ("greedy.image_exact", story),
            ("understanding.vqa", 0.0),
            ("understanding.caption", 0.0),
            ("text_to_image.exact", 0.01),
        )
    ]
    reach = {
        "rejection": None,
        "grpo_outcome": {"step": 40, "seconds": 208},
        "grpo_process": {"step": 20, "seconds": 104},
    }
    return {
        "arms": arms,
        "comparisons": differences,
        "first_reach": reach,
        "stages": {
            "image_tokenizer": {"reconstruction_exact": 0.998, "mean_squared_error": 0.00042, "seconds": 96.2},
            "warmup": {
                "seconds": 231.5,
                "loss": [
                    {"step": s, "text": 0.4 + 3 * math.exp(-s / 200), "image": 900 / (s + 200)} for s in range(900)
                ],
            },
        },
        "data": {
            "tokens": {"interleaved": {"text": 812345, "image": 1234567}, "captions": {"text": 300, "image": 4000}}
        },
        "seeds": [{"seed": s, "arms": {"warmup": arm(0.04), "grpo_process": arm(0.7 + s / 10)}} for s in range(3)],
        "gains": [
            {"arm": "grpo_process", "against": "rejection", "metric": "sampled.story_exact", **estimate}
            for estimate in [{"value": 0.0512, "low": 0.027, "high": 0.08, "n": 1800, "seeds": 3}]
        ],
        "seed": 0,
        "command": "limner demo --arms all --out runs/demo",
        "versions": {"limner": "0.1.0", "torch": "2.9.0"},
        "settings": {
            "curve_prompts": 128,
            "grpo": {"num_generations": 8, "beta": {"text": 0.01, "image": 0.01}},
            "seeds": [0, 1, 2],
        },
    }


def samples(count: int = 2, said: str = "A small red circle at the top left.") -> list[dict]:
    picture = Image.new("RGB", (32, 32), (214, 40, 40))
    prompt = InterleavedDocument((TextSegment("Illustrate: small red circle top left."),), id="p")
    answer = prompt + InterleavedDocument(
        (TextSegment(said, trainable=True), ImageSegment(picture, trainable=True, origin="generated"))
    )
    segments = [
        {"index": 1, "type": "text", "reward": 1.0, "parts": {"plan": 1.0}},
        {"index": 2, "type": "image", "reward": 0.125, "parts": {"plan": 0.25, "own_sentence": None}},
    ]
    record = {
        "document": answer.to_json(),
        "outcome": 0.7,
        "components": {"format": 1.0, "text": None},
        "segments": segments,
    }
    return [
        {"id": f"p{i}", "prompt": prompt.to_json(), "answers": {"grpo_process": record, "warmup": record}}
        for i in range(count)
    ]


def test_the_whole_report_is_well_formed_and_refers_to_nothing_outside(tmp_path: Path):
    write_report(tmp_path / "report.html", json.loads(json.dumps(metrics())), samples(6))
    html = (tmp_path / "report.html").read_text()
    seen = Reader(html).seen
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert not re.search(r"https?:|@import|url\(|<script|<link|nan\b|inf\b", re.sub(r"base64,[^\"]*", "", html))
    for words in (
        "Process GRPO writes 81",
        "against 4",
        "0.81 [0.78, 0.84]",
        "+0.77",
        "not reached",
        "limner demo --arms all",
        "on the first 128 held-out prompts",
        "greedy: pictures exact",
        "Process GRPO at rollout batch 20",
    ):
        assert words in seen.replace("\xa0", " "), words
    for words in (
        "learning rate",
        "6 prompts",
        "of 6 the 3 that gained most",
        "812,345",
        "0.998",
        "num_generations",
        "Mean over 3 seeds (0, 1, 2)",
        "the bootstrap draws seeds, then items within them",
        "1,800",
    ):
        assert words in seen, words


def test_steps_of_another_kind_have_a_chart_of_their_own():
    charts = dict(
        re.findall(r"<figcaption>(By [^<]*)</figcaption>.*?aria-label=\"([^\"]*)\"", report_html(metrics(), []))
    )
    assert len(charts) == 3 and "Process GRPO from" in charts["By rollout batch"]
    assert "Warm-up from" in charts["By optimizer step"] and "GRPO" not in charts["By optimizer step"]


def test_rewards_stand_with_their_segments():
    html = report_html({}, samples(1))
    text, image = re.findall(r'<div class="(?:text|chips)">.*?</div></div>|<figure>.*?</figure>', html)[-2:]
    assert "A small red circle" in text and "reward <b>1.00</b>" in text
    assert "reward <b>0.12</b>" in image and 'chip none">own sentence <b>&ndash;</b>' in image
    assert html.index("Warm-up</h4>") < html.index("Process GRPO</h4>"), "arms stand in their order"
    assert html.count("Illustrate: small red circle") == 2, "first and in full, and not with each answer"


@pytest.mark.parametrize(
    "missing", ["arms", "comparisons", "first_reach", "stages", "data", "seeds", "versions", "settings"]
)
def test_a_part_that_is_missing_is_left_out(missing: str):
    for absent in ({}, {missing: None}, {missing: {}}):
        Reader(report_html({key: value for key, value in metrics().items() if key != missing} | absent, samples(1)))


def test_an_empty_run_still_has_a_report():
    seen = Reader(report_html({}, [])).seen
    assert "No arm of this run was evaluated." in seen and "No samples were kept." in seen and "not measured" in seen


def test_figures_that_are_no_numbers_are_not_measured():
    broken = {
        "arms": {
            "warmup": {"sampled": {"story_exact": {"value": math.nan}}, "curve": [{"step": None}], "training": [3]}
        }
    }
    Reader(report_html(broken, [{"id": "x", "prompt": {"segments": "no"}, "answers": {"warmup": None}}]))
    assert headline(broken) == "No arm of this run was evaluated."


def test_hostile_strings_stay_text():
    record = {**metrics(), "title": HOSTILE, "command": HOSTILE, "settings": {HOSTILE: {HOSTILE: HOSTILE}}}
    record["arms"][HOSTILE] = arm(0.5) | {
        "curve": [{"step": 1, "sampled_story_exact": 0.1}],
        "training": [{HOSTILE: 1, "step": 1}],
    }
    record["comparisons"].append({"arm": HOSTILE, "against": HOSTILE, "metric": HOSTILE, "value": 0.1})
    record["first_reach"][HOSTILE] = {"step": 3}
    record["data"]["tokens"][HOSTILE] = {"text": 1, "image": 1}
    told = samples(1, said=HOSTILE)
    told[0]["answers"][HOSTILE] = {"components": {HOSTILE: 1.0}, "segments": [{"index": 0, "parts": {HOSTILE: 1.0}}]}
    reader = Reader(report_html(record, told))
    assert "script" not in reader.tags and reader.tags.count("img") == 3  # warm-up is one of the two that come first
    assert reader.seen.count(HOSTILE) > 10


def test_verdicts_are_honest():
    record = metrics()
    assert [verdict.met for verdict in verdicts(record)] == [True, True, True, True, True]
    record["arms"]["control"]["best_temperature"]["story_exact"] = estimate(0.82)
    record["arms"]["grpo_process"]["greedy"]["story_exact"] = estimate(0.79)
    lost = {
        "arm": "rejection",
        "against": "warmup",
        "metric": "understanding.vqa",
        "value": -0.05,
        "low": -0.08,
        "high": -0.03,
    }
    record["comparisons"].append(lost)
    record["first_reach"]["grpo_process"] = None
    found = verdicts(record)
    assert [verdict.met for verdict in found] == [True, False, False, False, False]
    assert "Control best temperature 0.82" in found[2].figures and "Rejection" in found[3].figures
    del record["arms"]["control"]
    assert "Control was not run" in verdicts(record)[2].figures
    assert [verdict.met for verdict in verdicts({})] == [None] * 5


def test_no_goal_is_met_that_was_not_measured():
    above, kept = 2, 3
    record = metrics()
    del record["arms"]["control"]
    assert verdicts(record)[above].met is None, "a rival was not run"
    record["arms"]["warmup"]["greedy"]["story_exact"] = estimate(0.9)
    assert verdicts(record)[above].met is False, "one as good is enough to miss it"
    record = metrics()
    del record["arms"]["control"]["best_temperature"]
    assert verdicts(record)[above].met is None
    record["comparisons"] = [c for c in record["comparisons"] if c["metric"] != "understanding.caption"]
    assert verdicts(record)[kept].met is None and "captions" in verdicts(record)[kept].figures


def test_pictures_come_first_and_those_that_gained_most_before_others():
    told = samples(5)
    for number, sample in enumerate(told):
        sample["prompt"]["segments"][0]["text"] = f"Prompt {number}."
        sample["answers"] = {
            name: {**answer, "outcome": (0.1 * number if name == "grpo_process" else 0.05)}
            for name, answer in sample["answers"].items()
        }
    html = report_html(metrics(), told)
    first = html[: html.index("<nav")]
    assert [place for place in re.findall(r"Prompt (\d)\.", first)] == ["4", "3", "2"]
    assert first.index("data:image/png") < first.index('class="verdicts"')
    assert first.index("Warm-up ") < first.index("Process GRPO <span")


def test_a_picture_left_out_has_its_place():
    (told,) = samples(1)
    whole = told["answers"].pop("warmup")
    without = json.loads(json.dumps(whole))
    del without["document"]["segments"][2]
    told["answers"] |= {"warmup": without}
    assert "No picture" not in report_html({}, [told]), "how many there should be is not known"
    html = report_html({}, [{**told, "pictures": 1}])
    assert html.count("No picture") == 2
    assert html.index("A small red circle") < html.index("No picture") < html.index("Process GRPO <span")
    assert report_html({}, [{**told, "pictures": 4}]).count("No picture") == 2 * (4 + 3)


def test_a_run_that_goes_on_loads_itself_anew_and_says_what_it_does():
    html = report_html({"unfinished": "warmup: step 300 <b>"}, samples(1))
    assert '<meta http-equiv="refresh" content="10">' in html and "step 300 &lt;b&gt;" in html
    assert "The first arm is being trained" in html and "<script" not in html
    assert "refresh" not in report_html(metrics(), samples(1))


def test_rewards_have_axes_that_can_be_read():
    rows = [{"step": s, "reward": 0.9, "rewards/a": 0.95, "rewards/a/std": 0.02, "rewards/b": 0.97} for s in range(3)]
    html = report_html({"arms": {"grpo_process": {"training": rows}}}, [])
    charts = dict(re.findall(r"<figcaption>(reward[^<]*)</figcaption>(.*?)</figure>", html))
    assert set(charts) == {"reward", "rewards", "rewards: std"}
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([\d.]+)</text>', charts["rewards"])]
    assert min(ticks) >= 0.9 and max(ticks) == 1 and len(ticks) > 2
    assert "a from 0.02" in charts["rewards: std"]


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_keeps_its_marks_inside(log: bool):
    points = [(0.0, 5.0), (1.0, 0.001), (2.0, math.nan), (3.0, -1.0), (4000.0, 700.0)]
    line = Line("a <b>", points, band=[(1.0, 0.0005, 0.002), (4000.0, 1.0, 900.0)])
    chart = line_chart([line, Line("flat", [(2.0, 5.0)])], title="t", x_label="x", log_x=log, log_y=log)
    Reader(chart)
    assert "a &lt;b&gt; <b>700</b>" in chart and "nan" not in chart
    for marks in re.findall(r' d="([^"]*)"', chart):
        for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", marks):
            assert 0 <= float(x) <= 400 and 0 <= float(y) <= 230


def test_a_point_alone_is_a_point():
    chart = line_chart([Line("a", [(2.0, 5.0)]), Line("b", [(2.0, 5.0), (3.0, 6.0)])], title="t", x_label="x")
    assert chart.count('class="dot c0" ') == 4 and f'r="{page.ALONE}"' in chart and "a at 5" in chart
    assert chart.count('class="line c0"') == 2, "the other line, and its name"


def test_a_dash_among_facts_is_escaped_once():
    assert "<dd>&ndash;</dd>" in page.facts({"replies": page.Html("&ndash;")})
    assert "<dd>&amp;ndash; &amp;</dd>" in page.facts({"replies": "&ndash; &"})


def test_a_long_line_becomes_means_with_their_range():
    line = page.thinned(Line("a", [(float(i), float(i % 2)) for i in range(1000)]))
    assert len(line.points) <= page.MAX_POINTS and len(line.band) == len(line.points)
    assert all((low, high) == (0, 1) for _, low, high in line.band)
    assert "Nothing was recorded" in line_chart([], title="t", x_label="x")
