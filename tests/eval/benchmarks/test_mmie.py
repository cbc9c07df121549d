"""MMIE: the official scorer's behaviour case by case, its averages, and whole runs over HTTP."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmarks.mmie import (
    COUNTS,
    MMIE,
    PUBLISHED,
    UNKNOWN,
    MMIEConfig,
    category_of,
    official_score,
    official_verdict,
    official_view,
    read,
    read_rubrics,
    weighted_average,
)
from limner.eval.entries import Entry, read_entries, segments_of
from limner.eval.run import EvalConfig, evaluate
from limner.models.chat.requests import Failure, Reply
from limner.models.documents.document import TextSegment

from ...scripted_server import ScriptedServer, images, parts, texts
from ..benchmark_data import RUBRICS, asked_about, eval_config, judge_config, pairs, picture, results, write_mmie

REPLIES = {
    # the judge's words: (what the scorer's expression finds, the score that counts)
    "### Score: 5/6": (5, 5),
    "Score: 5": (None, None),
    "### Score\nThe final score (0-6) is 4": (0, 0),
    "### Score\n**3**": (3, 3),
    "### score\n3": (None, None),
    "### Score\n-1": (-1, None),
    "### Score\n4.5": (4, 4),
    "### Score\n5.5": (6, 6),
    "### Score\n6.5": (6, 6),
    "### Score\n6.6": (7, None),
    "### Feedback\n4 steps\n### Score\nfive\n\n### Score\n2": (2, 2),
    "": (None, None),
}


@pytest.mark.parametrize("words", REPLIES)
def test_official_parsing(words):
    found, counted = REPLIES[words]
    verdict = official_verdict(Reply(words))
    assert (official_score(words), verdict.score) == (found, counted)
    assert verdict.failure == ("" if counted is not None else "no score" if found is None else "out of range")
    assert verdict.words == words


def test_no_reply_is_no_score():
    assert official_verdict(Failure("timeout", "after 120 s")).failure == "timeout"


def test_published_averages_are_reproduced():
    """To a unit of the last digit. Rounding, of parts and average, explains 0.01; three rows are beyond that."""
    assert len(PUBLISHED) == 22 and sum(COUNTS.values()) == 20103
    beyond = {}
    for name, (*scores, average) in PUBLISHED:
        ours = weighted_average(dict(zip(COUNTS, scores, strict=True)))
        assert round(abs(round(ours, 2) - average), 2) <= 0.01, name
        if abs(ours - average) > 0.01:
            beyond[name] = round(ours - average, 3)
    assert beyond == {"EMU-2": 0.012, "LLaVA-34b + Openjourney": 0.012, "LLaVA-34b + Flux": 0.011}
    for scores, average in (((48.95, 59.05, 51.72), 55.22), ((56.87, 62.28, 54.31), 59.50)):
        assert round(weighted_average(dict(zip(COUNTS, scores, strict=True))), 2) == average


def test_categories(tmp_path):
    (tmp_path / "prompts.py").write_text(RUBRICS)
    rubrics = read_rubrics(tmp_path / "prompts.py")
    # id: (ours, the official scorer's)
    cases = {"SA-1": ("SA", "SA"), "PBL-SALAD-1": ("PBL", "SA"), "MSR-1": ("MSR", "MSR"), "x_PBL_3": ("PBL", "PBL")}
    cases |= {"MSR-PBL-2": ("MSR", "PBL"), "7": (UNKNOWN, UNKNOWN), "USA7": (UNKNOWN, "SA"), "sa-1": (UNKNOWN, UNKNOWN)}
    assert {name: (category_of(name), rubrics.category_of(name)) for name in cases} == cases
    assert category_of("7", "Project-based learning") == "PBL" and category_of("7", "MSR") == "MSR"


def entries(folder: Path, *kinds: str) -> list[Entry]:
    """`t` a text, `i` a picture, `ti` both, `x` a picture that is missing, `-` neither."""
    made = []
    for number, kind in enumerate(kinds):
        name = picture(folder / "images" / f"{number}.png") if "i" in kind else "images/none.png" if "x" in kind else ""
        made.append(Entry(f"t{number}" if "t" in kind else None, folder / name if name else None))
    return made


VIEWS = {
    # question, answer: what is seen of the answer, pictures, what is left out
    ("t",): (("ti", "ti", "ti", "ti"), "t0 i0 t1 i1 t2 i2", 3, {"cut pictures": 1, "cut texts": 1}),
    ("ti",): (("i", "ti", "t", "ti"), "i1 t1 i2", 3, {"cut pictures": 1, "cut texts": 2}),
    ("i", "i", "i"): (("ti", "t"), "t0", 3, {"cut pictures": 1, "cut texts": 1}),
    ("i", "i", "ti"): (("-", "t"), "", 3, {"cut texts": 1}),
    ("i", "i", "i", "i", "i"): (("t",), "t0", 5, {}),
    ("tx", "i"): (("tx", "t", "ti"), "t0 t1 t2 i1", 2, {"missing pictures": 2}),
    ("t", "t"): (("t", "t", "t", "t"), "t0 t1 t2 t3", 0, {}),
    ("-",): ((), "", 0, {}),
}


@pytest.mark.parametrize("asked", VIEWS)
def test_official_cut(asked, tmp_path):
    given, seen, count, notes = VIEWS[asked]
    view = official_view(entries(tmp_path, *asked), entries(tmp_path, *given))
    words = "".join(s.text for s in view.answer if isinstance(s, TextSegment))
    assert words.replace("Image-", "i").replace(": ", "").split() == seen.split()
    assert (view.images, view.notes) == (count, notes)


def test_official_prompt_word_for_word(tmp_path):
    """Rubric, question, answer, truth; each text with its line break, pictures counted on through both."""
    data = write_mmie(tmp_path, ["MSR-1"])
    ((item, given),) = read(data)
    benchmark = MMIE([item], MMIEConfig("official", str(tmp_path / "prompts.py")))
    (task,) = benchmark.tasks(benchmark.items[0], given)
    said = "".join(s.text if isinstance(s, TextSegment) else "<image>" for s in task.ask.content.segments)
    assert said == (
        "Judge the solution. ### Question\nQuestion MSR-1.\nImage-0: <image>\n\n"
        "### Answer\nAnswer to MSR-1.\nImage-1: <image>\nThe end.\n\n### Truth\n42\n### End\n"
    )


def test_rubrics_are_read_and_never_run(tmp_path):
    file = tmp_path / "prompts.py"
    file.write_text(RUBRICS)  # to run it would end the process
    assert list(read_rubrics(file).prompts) == ["SA", "PBL", "MSR"]
    for wrong, words in {
        "x = 1": "get_prompt",
        "def get_prompt(i):\n    if 'SA' in i:\n        return open('/etc/passwd').read()\n": "open",
        RUBRICS.replace("{answer}", "{reply}"): "reply",
        RUBRICS.replace('"PBL" in', '"pbl" in'): "PBL",
        "def (": "prompts.py",
    }.items():
        file.write_text(wrong)
        with pytest.raises(InputError, match=words):
            read_rubrics(file)
    with pytest.raises(InputError, match="checkout"):
        MMIEConfig("official")


def test_data_are_read_leniently_and_faults_name_record_and_field(tmp_path):
    record = {"id": 7, "question": "What is it?", "category": "MSR", "further": {}}
    shapes = {
        "list.json": [record],
        "by_category.json": {"MSR": [record], "SA": []},
        "by_id.json": {"7": {key: value for key, value in record.items() if key != "id"}},
    }
    for name, value in shapes.items():
        (tmp_path / name).write_text(json.dumps(value, indent=1))
        ((item, given),) = read(tmp_path / name)
        assert (item.id, item.category, item.question, given) == ("7", "MSR", (Entry("What is it?"),), None)
    (tmp_path / "lines.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({**record, "answer": None}) + "\n")
    assert [(item.id, given is None) for item, given in read(tmp_path / "lines.jsonl")] == [("7", True), ("7#2", False)]
    faults = {
        json.dumps([{"question": "?"}]): ("record 1", "`id`"),
        json.dumps([record, {"id": "SA-2", "ask": "?"}]): ("record 2", "SA-2", "`question`", "'ask'"),
        json.dumps([{"id": "SA-1", "question": [{"words": "?"}]}]): ("SA-1", "`question`[0]", "'words'"),
        json.dumps([{"id": "SA-1", "question": [{"text": 3}]}]): ("SA-1", "`question`[0]"),
        json.dumps([{"id": "SA-1", "question": pairs((None, "../../x.png"))}]): ("SA-1", "../../x.png", "--images"),
        "[]": ("no records",),
        "{": ("not JSON",),
    }
    for text, words in faults.items():
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError) as fault:
            read(tmp_path / "bad.json")
        assert all(word in str(fault.value) for word in ("bad.json", *words)), fault.value


def test_answers_keep_their_form():
    """A text, nothing, neighbouring pictures, text after the last picture: entries to segments."""
    root = Path("/data")
    value = pairs(("a", None), ("b", "i.png"), (None, "j.png"), (None, None), ("c", None))
    assert read_entries("a", root, "") == (Entry("a"),) and read_entries(None, root, "") == ()
    assert [(e.text, e.image and e.image.name) for e in read_entries(value, root, "")] == [
        (pair["text"], pair["image"]) for pair in value
    ]
    assert [s.text for s in segments_of([Entry("a"), Entry(), Entry("c")]) if isinstance(s, TextSegment)] == ["a", "c"]


def test_official_run(tmp_path):
    """Drops and cuts are counted, and scores follow the scorer's own categories."""
    data = write_mmie(tmp_path / "data", ["SA-1", "PBL-SALAD-1", "PBL-1", "MSR-1", "MSR-2"])
    records = json.loads(data.read_text())
    four = [picture(data.parent / "images" / f"more-{number}.png") for number in range(4)]
    records[2]["answer"] = pairs(*((f"Step {number}.", name) for number, name in enumerate(four)))
    records[3]["question"] += pairs(*((None, name) for name in four))
    records[4]["gt_answer"] = pairs((None, None))
    data.write_text(json.dumps(records))
    rubrics = str(data.parent / "prompts.py")
    replies = {"SA-1": "### Score\n6", "PBL-SALAD-1": "### Score\n3", "PBL-1": "### Score 9", "MSR-2": "### Score: 4.5"}
    with ScriptedServer(lambda body: replies[asked_about(body)]) as server:
        config = eval_config(data, tmp_path / "out", server.url, options={"mode": "official", "rubrics": rubrics})
        assert evaluate(config)
        seen = {asked_about(body): body for body in server.bodies}
    assert set(seen) == {"SA-1", "PBL-SALAD-1", "PBL-1", "MSR-2"}
    assert len(images(seen["PBL-1"])) == 3 and "Step 2." not in texts(seen["PBL-1"])
    assert texts(seen["PBL-SALAD-1"]).startswith("Judge the story.") and "\nNone\n" in texts(seen["MSR-2"])
    found = results(config.out)
    assert found["accounting"]["failed"] == {"out of range": 1, "more than 4 images": 1}
    assert found["accounting"]["notes"]["cut pictures"] == {"scores": 1, "total": 2}
    values = {name: (score["value"], score["n"]) for name, score in found["scores"].items()}
    assert values == {"SA": (75.0, 2), "MSR": (pytest.approx(400 / 6), 1), "AVG": (pytest.approx(1300 / 18), 3)}
    assert found["manifest"]["scoring"]["rubrics"]["sha256"] and "out of range" not in found["scores"]


def test_real_documents_in_both_modes(real_data, tmp_path):
    """22 answers of another system with photographs: all is seen in full mode, three pictures in the other."""
    data = real_data / "mmie_schema" / "data.json"
    if not data.is_file():
        pytest.skip(f"no {data}")
    (tmp_path / "prompts.py").write_text(RUBRICS)
    steps = "How do I make Fennel White Bean and Kale Soup?"
    most = {}
    with ScriptedServer(lambda body: "### Score 5 <score>5</score>") as server:
        for mode in (MMIEConfig(), MMIEConfig("official", str(tmp_path / "prompts.py"))):
            server.bodies.clear()
            config = eval_config(data, tmp_path / mode.mode, server.url, options=asdict(mode), samples=3)
            config.judge.endpoint.image_side = 64
            assert evaluate(config)
            counts = results(config.out)["accounting"]
            assert counts["items"] == counts["scored"] == len(server.bodies) == 22 and not counts["failed"]
            most[mode.mode] = [len(images(body)) for body in server.bodies if steps in texts(body)]
    assert most == {"full": [4], "official": [3]}
    assert counts["notes"] == {"cut pictures": {"scores": 1, "total": 1}, "cut texts": {"scores": 1, "total": 1}}


def test_own_answers_are_exported_and_scored_again(tmp_path):
    """What `export` writes is the scorer's input: with it the same judge gives the same figures."""
    data = write_mmie(tmp_path / "data")
    with ScriptedServer(lambda body: f"<score>{len(parts(body)) % 7}</score>") as server:
        config = eval_config(data, tmp_path / "one", server.url, export=str(tmp_path / "exported"))
        assert evaluate(config)
        again = EvalConfig(
            data=str(data),
            answers=str(tmp_path / "exported" / "data.json"),
            out=str(tmp_path / "two"),
            judge=judge_config(server.url),
        )
        assert evaluate(again)
    one, two = results(config.out), results(again.out)
    assert one["scores"] == two["scores"] and one["accounting"] == two["accounting"]
    exported = json.loads((tmp_path / "exported" / "data.json").read_text())
    assert set(exported[0]) == {"id", "question", "answer", "model", "gt_answer"}
    assert all((tmp_path / "exported" / record["answer"][0]["image"]).is_file() for record in exported)
    assert exported[-1]["gt_answer"] == [{"text": "42", "image": None}]


def test_answers_to_what_was_not_asked(tmp_path):
    data, answers = write_mmie(tmp_path / "data"), write_mmie(tmp_path / "answers", ["SA-1", "SA-9"])
    with ScriptedServer(lambda body: "<score>5</score>") as server:
        config = EvalConfig(
            data=str(data), answers=str(answers), out=str(tmp_path / "out"), judge=judge_config(server.url)
        )
        with pytest.raises(InputError, match="SA-9"):
            evaluate(config)
        write_mmie(tmp_path / "answers", ["SA-1"])
        assert evaluate(config)
    assert results(config.out)["accounting"]["failed"] == {"no answer: not in the file": 6}
