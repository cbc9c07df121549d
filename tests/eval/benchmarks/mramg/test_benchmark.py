"""MRAMG-Bench: metrics and baselines, tags of the judge, averages, coverage, and whole runs."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, Placement, compose
from limner.data.sources.mramg import DOMAINS
from limner.eval.benchmark import Item, Outcome
from limner.eval.benchmarks.mramg.answers import Placed, illustrate, marked_text, read_answer
from limner.eval.benchmarks.mramg.benchmark import MRAMGConfig, baseline, placed_scores
from limner.eval.benchmarks.mramg.judge import Judgements
from limner.eval.benchmarks.mramg.table import (
    AVERAGE,
    BASELINES,
    COLUMNS,
    PUBLISHED,
    averaged,
    published_rows,
    scores,
    tables,
)
from limner.eval.entries import Entry
from limner.eval.folder import Journal, read_journals
from limner.eval.run import EvalConfig, evaluate
from limner.models.chat.choice import ChatConfig
from limner.models.chat.endpoint import EndpointConfig
from limner.models.chat.requests import Failure, Reply
from limner.retrieval.index.corpus import read_source
from limner.rewards.rules.insertion import OrderingCosts

from ....mramg_files import write_mramg, write_subset
from ....rewards import tiny_models
from ....scripted_server import ScriptedServer, images, texts
from ...benchmark_data import judge_config, results

TAGS = ("relevance_score", "effective_score", "overall_quality_score", "img_1_score")
ANSWERS = [
    {"id": "recipe/q1", "answer": "Peel. <img2> Roll. <img1>", "candidates": ["dough", "apples", "pasta"]},
    {"id": "recipe/q2", "answer": "Boil the pasta.", "candidates": ["pasta"]},
    {"subset": "recipe", "id": "q3", "answer": "Roll. <img1> <img9> <img_2>", "candidates": ["dough", "apples"]},
    {"id": "web/5", "answer": "In Paris. <img1>", "candidates": [12]},
]


def write_answers(path: Path, answers=ANSWERS) -> str:
    path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    return str(path)


def config(tmp_path: Path, out: str = "out", answers=ANSWERS, server: str = "", **settings) -> EvalConfig:
    data = tmp_path / "data"
    if not data.is_dir():
        write_mramg(data)
    others = {"judge": judge_config(server)} if server else {}
    if answers:
        others["answers"] = write_answers(tmp_path / "answers.jsonl", answers)
    return EvalConfig("mramg", data=str(data), out=str(tmp_path / out), options=settings, **others)


def values(found: dict) -> dict[str, float]:
    return {name: score["value"] for name, score in found.items() if "value" in score}


# ---- pure ----


def test_trivial_baselines_are_what_they_say():
    candidates = ["a", "b", "c", "d", "b"]
    gold, costs = ["b", "c"], OrderingCosts()
    drawn = [baseline("insert at random", candidates, f"0 q{number}") for number in range(400)]
    assert (
        baseline("insert all", candidates, "") == ["a", "b", "c", "d"]
        and baseline("insert nothing", candidates, "") == []
    )
    assert drawn[0] == baseline("insert at random", candidates, "0 q0")
    assert 1.8 < sum(map(len, drawn)) / len(drawn) < 2.2 and any(one != sorted(one) for one in drawn)
    nothing, everything = (placed_scores(gold, baseline(name, candidates, ""), costs) for name in BASELINES[:2])
    assert set(nothing.values()) == {0.0}
    assert everything["recall"] == 100 and everything["precision"] == 50 and 0 < everything["order"] < 100


@pytest.mark.parametrize(
    ("gold", "shown", "order"),
    [("abc", "acb", 77.78), ("abc", "bca", 66.67), ("ab", "abcd", 66.67), ("a", "axyz", 50), ("abc", "aaa", 25.93)],
)
def test_metrics_are_percent_and_repeated_pictures_count_again(gold, shown, order):
    letters = sorted({*gold, *shown})
    marked = "".join(f"x <img{letters.index(letter) + 1}>" for letter in shown)
    given = Placed(marked=marked, candidates=tuple(letters))
    assert placed_scores(list(gold), given.images, OrderingCosts())["order"] == pytest.approx(order, abs=0.01)


def test_published_averages_follow_the_rule_of_their_domain():
    """Lifestyle averages ten metrics, web and academic nine; the order is published for lifestyle alone."""
    for subset, rows in PUBLISHED.items():
        wanted = averaged(DOMAINS[subset])
        assert len(wanted) == (10 if DOMAINS[subset] == "lifestyle" else 9)
        for row, (_, figures) in zip(rows, published_rows(subset), strict=True):
            assert (row[3] is None) == ("order" not in wanted) and len(figures) == len(wanted) + 1
            assert figures[-1] == pytest.approx(sum(figure for figure in row if figure is not None) / len(wanted))
    assert dict(published_rows("arxiv"))["arxiv, LLM-based"][-1] == pytest.approx(76.91, abs=0.01)
    assert dict(published_rows("recipe"))["recipe, rule-based"][-1] == pytest.approx(66.65, abs=0.01)


def test_our_average_of_a_published_row_is_that_row_s():
    """Scores that have the published means have the published average; without one of them there is none."""
    for subset, rows in PUBLISHED.items():
        item = Item("q", subset, ())
        whole = [Outcome(item, name, 0.0 if f is None else f) for name, f in zip(COLUMNS, rows[0], strict=True)]
        domain = scores(whole)["domains"][DOMAINS[subset]]
        assert domain[AVERAGE]["value"] == pytest.approx(published_rows(subset)[0][1][-1])
        assert AVERAGE not in scores(whole[:-1])["domains"][DOMAINS[subset]]
        (table,) = tables(whole, "x")  # of one domain: nothing is said twice
        assert len(table.columns) == len(table.published[0][1]) == len(table.rows[0][1])


def test_documents_and_marked_texts_are_the_same_answer():
    candidates = [Candidate(Image.new("RGB", (4, 4)), id=name) for name in "ab"]
    document = compose(["One <img1>. ", "Two."], [Placement(1, 2), Placement(2, 1)], candidates)
    assert marked_text(document) == "One <img 1>. <img2>Two.<img1>"
    record = {"id": "recipe/q", "document": document.to_json(), "candidates": ["a", "b"]}
    given = read_answer(record, "here")
    assert isinstance(given, Placed) and given.images == ["recipe/b", "recipe/a"] and "Two." in given.text


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"answer": "x"}, "`candidates`"),
        ({"candidates": []}, "neither a text `answer`"),
        ({"candidates": [], "document": {"segments": [{"type": "sound"}]}}, "`document`"),
        ({"candidates": [], "answer": "x", "faults": {"a": "b"}}, "`faults`"),
    ],
)
def test_faulty_answers_are_named(record, words):
    with pytest.raises(InputError, match=f"file:3.*{words}"):
        read_answer({"id": "recipe/q", **record}, "file:3")


# ---- the judge's replies ----


def tag(name: str, score: object) -> str:
    return f"<{name}>{score}</{name}>"


@pytest.mark.parametrize(
    ("metric", "reply", "pictures", "every", "first"),
    [
        ("relevance", tag("relevance_score", 4), 1, 80, 80),
        ("relevance", tag("relevance_score", 4) + tag("relevance_score", 2), 2, 60, 80),
        (
            "comprehensive",
            "<think>" + tag("overall_quality_score", 1) + "</think>" + tag("overall_quality_score", 5),
            0,
            100,
            100,
        ),
        ("effectiveness", tag("effective_score", 7), 1, "out of range", "out of range"),
        ("effectiveness", tag("relevance_score", 3), 1, "no score", "no score"),
        ("position", tag("img_1_score", 1) + tag("img_2_score", 0), 2, 50, 100),
        ("position", tag("img_2_score", 0) + tag("img_1_score", 1) + tag("img_1_score", 1), 2, 50, 0),
        ("position", tag("img_1_score", 1), 2, "no score", 100),
        ("position", tag("img_1_score", 1) + tag("img_3_score", 1), 2, "no score", 100),
        ("position", tag("img_1_score", 1) + tag("img_1_score", 0), 1, "several scores", 100),
        ("position", tag("img_1_score", "yes"), 1, "no number", "no number"),
    ],
)
def test_tags(metric, reply, pictures, every, first):
    for first_tag, wanted in ((False, every), (True, first)):
        verdict = Judgements({}, first_tag).read(metric, Reply(reply), pictures)
        assert (verdict.failure or verdict.score) == (wanted if isinstance(wanted, str) else pytest.approx(wanted))


def test_failures_of_the_judge_are_no_scores():
    judgements = Judgements({}, False)
    assert judgements.read("position", Failure("timeout", "late"), 1).failure == "timeout"
    assert judgements.read("position", Reply(tag("img_1_score", 1), finish="length"), 1).failure == "truncated"
    assert judgements.read("relevance", Reply(""), 1).failure == "empty"


# ---- runs ----


def test_statistical_run_of_a_file_of_answers(tmp_path):
    """Every figure, the share without a choice beside it, faults counted; no judge and no model."""
    run = config(tmp_path)
    assert evaluate(run)
    found = results(run.out)
    recipe, web = found["scores"]["subsets"]["recipe"], found["scores"]["subsets"]["web"]
    assert values(recipe)["recall"] == pytest.approx(200 / 3) and values(web)["f1"] == 100
    assert values(recipe)["no choice"] == pytest.approx(100 / 3) and values(web)["no choice"] == 100
    assert values(found["scores"])["rouge_l"] > 50 and "bertscore" not in found["scores"]
    assert found["accounting"]["notes"] == {
        "malformed": {"scores": 1, "total": 1},
        "out of range": {"scores": 1, "total": 1},
    }
    whole, web_table, lifestyle = found["tables"]
    assert [re.sub(r" \(.*", "", name) for name, _ in whole["rows"]] == ["answers.jsonl", *BASELINES]
    assert all("50.0 % of questions offer only right pictures" in name for name, _ in whole["rows"])
    assert "Ord" in lifestyle["columns"] and "Ord" not in web_table["columns"] and len(web_table["published"]) == 3
    said = " ".join(found["caveats"])
    assert "3 of 3 questions" in said and "2,360" in said and "No BERTScore" in said and "No judge" in said
    samples = json.loads((Path(run.out) / "samples.json").read_text())
    shown = {sample["id"]: [s["type"] for s in sample["answer"]["segments"]] for sample in samples}
    assert shown["recipe/q1"] == ["text", "image", "text", "image"] and shown["recipe/q2"] == ["text"]


def test_answers_that_are_missing_stop_the_run_unless_it_is_said(tmp_path):
    with pytest.raises(InputError, match=r"2 of 3 questions of recipe .*min_coverage 0\.666\)"):
        evaluate(config(tmp_path, answers=ANSWERS[1:]))
    run = config(tmp_path, answers=ANSWERS[1:], min_coverage=0.666)
    assert evaluate(run)
    found = results(run.out)
    assert "recipe: 2 of 3 questions" in " ".join(found["caveats"])
    assert found["scores"]["subsets"]["recipe"]["f1"]["n"] == 2 and found["accounting"]["answered"] == 3


def test_ids_that_fit_nothing_are_no_silent_zeros(tmp_path):
    with pytest.raises(InputError, match="candidate 'recipe/cake' is none"):
        evaluate(config(tmp_path, answers=[{**ANSWERS[0], "candidates": ["dough", "cake"]}, *ANSWERS[1:]]))
    with pytest.raises(InputError, match="'recipe/q9'"):
        evaluate(config(tmp_path, answers=[*ANSWERS, {**ANSWERS[0], "id": "recipe/q9"}]))


def test_gold_pictures_that_are_not_there_are_listed(tmp_path):
    run = config(tmp_path)
    (tmp_path / "data/IMAGE/images/WEB/12.png").unlink()
    assert evaluate(run)
    found = results(run.out)
    assert any("gold image missing 1" in caveat and "web/12" in caveat for caveat in found["caveats"])
    assert values(found["scores"]["subsets"]["web"])["recall"] == 100


def judge_script(body) -> str:
    """Both pictures of q1 at their place but the second, all else the best."""
    said = texts(body)
    (asked,) = [name for name in TAGS if f"<{name}>" in said]
    if asked == "img_1_score":
        return "".join(tag(f"img_{number}_score", int(number < 2)) for number in range(1, len(images(body)) + 1))
    return tag(asked, 5)


def test_run_with_a_judge(tmp_path):
    """Four requests an answer with pictures, one of an answer without; position is of all tags, or of the first."""
    position = {}
    for first in (False, True):
        with ScriptedServer(judge_script) as server:
            run = config(tmp_path, f"out{first}", server=server.url, judge=True, first_tag=first)
            assert evaluate(run)
            assert len(server.bodies) == 3 * 4 + 1
        found = results(run.out)
        position[first] = values(found["scores"]["subsets"]["recipe"])["position"]
        assert values(found["scores"]["subsets"]["recipe"])["comprehensive"] == 100
        assert values(found["scores"]["subsets"]["recipe"])["relevance"] == pytest.approx(200 / 3)
        assert found["manifest"]["scoring"]["judged"]["templates"]["position"]["name"] == "mramg_position.v1"
    assert position == {False: pytest.approx(50), True: pytest.approx(200 / 3)}


def test_rule_on_the_documents_of_the_provenance(tmp_path):
    """No index, no model: the rule puts the ground truth's pictures back; a second call writes nothing."""
    run = config(tmp_path, answers=None, candidates="gold")
    assert evaluate(run)
    before = (Path(run.out) / "answers.0.jsonl").read_bytes()
    assert evaluate(run) and (Path(run.out) / "answers.0.jsonl").read_bytes() == before
    found = values(results(run.out)["scores"])
    assert found["recall"] == 100 and found["f1"] > found["f1: insert at random"] and found["no choice"] == 75
    assert "rouge_l" not in found and "context recall" not in found
    records = {r["id"]: r for r in map(json.loads, before.decode().splitlines())}
    assert records["recipe/q1"]["candidates"] == ["recipe/apples", "recipe/dough"]
    again = config(tmp_path, "again", answers=list(records.values()))
    assert evaluate(again) and values(results(again.out)["scores"])["f1"] == found["f1"]


def test_a_question_that_is_too_long_for_the_inserter_is_counted(tmp_path):
    def place(task):
        if task.sentences == ("long",):
            raise InputError("the inserter's prompt has 9 tokens, and its model 8 positions")
        return []

    meta = {"provenance": [], "gold": []}
    found = [(Item(text, "", (Entry("?"),), text, meta), []) for text in ("long", "short")]
    with Journal(tmp_path, "answers") as journal:
        assert [*illustrate(iter(found), place, True, journal)] == [1, 2]
    first, second = read_journals(tmp_path, "answers")
    assert first["failure"] == "no answer" and "9 tokens" in first["reason"] and second["answer"] == "short"


def test_bertscore_by_an_encoder_of_the_user(tmp_path):
    """Not rescaled, and 100 for the same words; the markers are no words."""
    tiny_models.bert(tmp_path / "encoder")
    same = {"id": "web/5", "answer": "In <img1> Paris.", "candidates": [12]}
    answers = [*ANSWERS[:3], same]
    run = config(tmp_path, answers=answers, bertscore=str(tmp_path / "encoder"), bertscore_layer=1)
    assert evaluate(run)
    found = results(run.out)
    assert values(found["scores"]["subsets"]["web"])["bertscore"] == pytest.approx(100, abs=0.01)
    assert 0 < values(found["scores"]["subsets"]["recipe"])["bertscore"] < 100
    assert found["manifest"]["scoring"]["bertscore"]["layer"] == 1


def test_a_gold_picture_that_stands_in_for_its_copy(tmp_path):
    """Of two ids with the same bytes one candidate is offered: whichever is gold."""
    copies = {1: ("Cut it. <PIC> Cook it. <PIC>", ["raw", "same"])}
    write_subset(tmp_path / "data", "recipe", copies, [("q", "How?", [1], "Cook it. <PIC>", ["same"])])
    pictures = tmp_path / "data/IMAGE/images/RECIPE"
    (pictures / "same.png").write_bytes((pictures / "raw.png").read_bytes())
    run = config(tmp_path, answers=None, candidates="gold")
    assert evaluate(run) and values(results(run.out)["scores"])["f1"] == 100


def test_a_language_model_answers(tmp_path):
    """Its own text with markers; a failed request is counted and tried again by the next call."""
    broken = [True]

    def script(body):
        said = texts(body)
        if "tower" in said and broken:
            return "I" * 0
        return "First peel. <img1> Then roll. <img2> <img7>" if "strudel" in said else "It is so. <img1>"

    with ScriptedServer(script) as server:
        writer = ChatConfig(endpoint=EndpointConfig(server.url, "scripted", retries=1, backoff=0.0, timeout=20.0))
        run = config(tmp_path, answers=None, strategy="llm", candidates="gold", writer=writer)
        evaluate(run)
        found = results(run.out)
        assert found["accounting"]["answered"] == 3 and len(server.bodies) == 4
        broken.clear()
        assert evaluate(run) and len(server.bodies) == 5
    found = results(run.out)
    assert found["accounting"]["answered"] == 4 and found["accounting"]["notes"]["out of range"]["total"] == 1
    assert values(found["scores"]["subsets"]["recipe"])["recall"] == pytest.approx(200 / 3)
    assert values(found["scores"])["rouge_l"] < 100


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match=r"options\.index"):
        evaluate(config(tmp_path, answers=None))
    with pytest.raises(InputError, match=r"options\.inserter"):
        evaluate(config(tmp_path, answers=None, candidates="gold", strategy="inserter"))
    with pytest.raises(InputError, match="no --model"):
        EvalConfig("mramg", data="x", model="y")
    for settings in ({"subsets": ["cooking"]}, {"min_coverage": 2.0}, {"top_k": 0}, {"templates": {"beauty": "x"}}):
        with pytest.raises(InputError, match=next(iter(settings))):
            MRAMGConfig(**settings)


@pytest.mark.slow
def test_real_records_with_retrieved_candidates(real_data, tmp_path):
    """Index, search, rule and all figures without a download: rule beats what looks at nothing, on F1 and on order."""
    folder = real_data / "mramg_schema"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    index = pytest.importorskip("limner.retrieval.index.store", exc_type=InputError)
    problems = []
    index.Index.create(tmp_path / "index").add(read_source(folder, problems), whole=True)
    assert not problems
    for text, least in (("gold", 85), ("own", 55)):
        settings = {"text": text, "index": str(tmp_path / "index")}
        run = EvalConfig("mramg", data=str(folder), out=str(tmp_path / text), options=settings)
        assert evaluate(run)
        found = values(results(run.out)["scores"])
        assert found["f1"] > least and found["no choice"] == 0 and found["visual recall"] > 85
        for name in BASELINES:
            for metric in ("f1", "order"):
                assert found[metric] > found[f"{metric}: {name}"] + 15, (text, name, metric)
