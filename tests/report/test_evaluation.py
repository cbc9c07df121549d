"""The page of an evaluation: complete, well-formed, hostile words stay words, and it fetches nothing."""

import json
import re

import pytest

from limner.configs.errors import InputError
from limner.eval.results import RESULTS, SAMPLES
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.report.evaluation import report_html, summary, write_report
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

HOSTILE = '</pre><script src="http://evil.example/x.js"></script><img src=x onerror=alert(1)>'


def figures() -> dict:
    cell = {"value": 51.2, "low": 49.0, "high": 53.5, "n": 1200}
    return {
        "benchmark": "mmie",
        "title": "MMIE, official mode",
        "highest": 6,
        "finished": "2025-01-02",
        "scores": {"AVG": cell},
        "tables": [
            {
                "title": "Scores, percent",
                "columns": ["SA", "AVG"],
                "rows": [["this run", [None, cell]]],
                "published": [["Anole", [48.95, 55.22]]],
                "source": "the leaderboard",
                "main": "AVG",
            },
            {"title": "By task", "columns": ["SA"], "rows": [[HOSTILE, [cell]]], "published": [], "source": ""},
        ],
        "accounting": {
            "items": 1300,
            "answered": 1290,
            "not_ended": 3,
            "scores_wanted": 1300,
            "scored": 1200,
            "replies": 1250,
            "parse_rate": 0.96,
            "failed": {"no score": 50, "more than 4 images": 40, "no answer: missing image": 10},
            "notes": {"cut pictures": {"scores": 70, "total": 140}},
            "prompt_tokens": 5000,
            "completion_tokens": 600,
        },
        "caveats": ["1,300 items of 20,103: the published rows are of the whole set."],
        "manifest": {
            "model": {"name": "runs/model"},
            "judge": {"model": "MMIE/MMIE-Score", "revision": "abc"},
            "created": "2025-01-01",
        },
    }


def samples() -> list[dict]:
    picture = ImageSegment(draw_scene(SCENES[0]))
    prompt = InterleavedDocument((TextSegment(HOSTILE), picture)).to_json()
    verdicts = [
        {"aspect": "score", "score": 5.0, "failure": "", "words": f"Good. {HOSTILE}", "notes": {"cut texts": 2}},
        {"aspect": "other", "score": None, "failure": "no score", "words": "I like it.", "notes": {}},
    ]
    shared = {"category": "SA", "verdicts": verdicts}
    return [
        {**shared, "id": HOSTILE, "prompt": prompt, "answer": prompt, "reference": "42"},
        {**shared, "id": "SA-2", "prompt": None, "answer": InterleavedDocument(()).to_json(), "reference": None},
    ]


def test_page_shows_what_a_reader_must_know():
    html = report_html(figures(), samples())
    text = re.sub(r"<[^>]+>", " ", html)
    for words in (
        *("51.20", "49.00 to 53.50", "n 1,200", "Anole", "55.22", "the leaderboard", "1,300 items of 20,103"),
        *("1,200 of 1,300", "96.0%", "no score", "more than 4 images", "cut pictures", "MMIE/MMIE-Score abc"),
        *("5 of 6 (2 cut texts)", "Good.", "I like it.", "Correct answer: 42", "does not open"),
    ):
        assert words in text, words
    assert "<script" not in html and "onerror=alert(1)&gt;" in html
    assert not re.search(r'(?:src|href)="(?!data:|#)', html)


def test_the_headline_is_the_main_figure():
    told, other = figures(), {"value": 12.0, "low": 11.0, "high": 13.0, "n": 7}
    table = told["tables"][0]
    table |= {"columns": ["story_exact", "AVG", "structure"], "published": []}
    for main, first in (("story_exact", "story exact 12.00"), ("AVG", "AVG 51.20"), ("", "story exact 12.00")):
        table |= {"main": main, "rows": [["this run", [other, told["scores"]["AVG"], other]]]}
        assert f'class="lead">This run: {first}, 95 %' in report_html(told, [])
    del table["main"]  # of an earlier limner
    assert "This run: story exact 12.00" in report_html(told, [])


def test_what_was_not_counted_is_a_dash():
    told = figures()
    told["accounting"]["parse_rate"] = None
    html = report_html(told, [])
    assert "<dt>replies with a score</dt><dd>&ndash;</dd>" in html and "&amp;ndash;" not in html


def test_files_of_a_run_become_its_page(tmp_path):
    with pytest.raises(InputError, match="results.json"):
        write_report(tmp_path)
    (tmp_path / RESULTS).write_text(json.dumps(figures()))
    (tmp_path / SAMPLES).write_text(json.dumps([{**samples()[0], "id": "half \ud83d"}]))
    said = write_report(tmp_path)
    assert (tmp_path / "report.html").is_file() and said == f"{summary(figures())}\n{tmp_path / 'report.html'}"
    assert "this run: AVG 51.20 [49.00, 53.50] of 1200" in said and "missing: 50 no score" in said


def test_nothing_scored_is_said():
    nothing = figures()
    nothing["tables"] = [{**nothing["tables"][0], "rows": [["this run", [None, None]]]}]
    nothing["accounting"] |= {"parse_rate": None, "failed": {}, "notes": {}}
    assert "No item has a score." in report_html(nothing, [])
    assert summary(nothing).startswith("this run: no scores")
