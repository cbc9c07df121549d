"""POPE, MME, SEED-Bench and questions as JSONL: the official rules case by case, and whole runs of given answers."""

import json

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmarks.vqa import (
    COGNITION,
    PERCEPTION,
    UNREADABLE,
    chosen_letter,
    mme_answer,
    pope_answer,
    read_mme,
)
from limner.eval.capabilities import main as guard
from limner.eval.run import EvalConfig, evaluate, make_benchmark

from ..benchmark_data import picture, results

POPE_ANSWERS = {
    "Yes": "yes",
    "No": "no",
    "No, there is no dog.": "no",
    "There is not a dog.": "no",
    "NO": "yes",  # capitals are not among the rule's words
    "Yes. There is no doubt": "yes",  # only the first sentence counts
    "Nothing": "yes",
    "": "yes",
    "I see, no": "no",
}
MME_ANSWERS = {"Yes": "yes", "yes.": "yes", " NO": "no", "No, it is": "no", "The answer is yes": None, "": None}
MME_ANSWERS |= {"Not": "no", "know": "no", "A: yes": None}
LETTERS = {
    "B": "B",
    " (B) ": "B",
    "B. a dog": "B",
    "b": None,
    "Answer: C": "C",
    "The answer is (A).": "A",
    "A dog": "B",  # the choice repeated, not the letter A
    "a dog.": "B",
    "A dog and a cat": None,
    "": None,
}


def test_official_rules_for_yes_and_no():
    assert {text: pope_answer(text) for text in POPE_ANSWERS} == POPE_ANSWERS
    assert {text: mme_answer(text) for text in MME_ANSWERS} == MME_ANSWERS


def test_letters():
    assert {text: chosen_letter(text, ["cat", "a dog", "horse"]) for text in LETTERS} == LETTERS
    assert chosen_letter("D", ["x", "y", "z"]) is None


def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(benchmark, out, **paths):
    assert evaluate(EvalConfig(benchmark=benchmark, out=str(out), **paths))
    return results(out)


def pope(folder, said, name="before"):
    labels = ["yes", "yes", "yes", "no", "no"]
    data = [
        {"question_id": n, "image": f"{n}.jpg", "text": f"Is there a {n}?", "label": label}
        for n, label in enumerate(labels, 1)
    ]
    answers = [{"question": "", "answer": text} for text in said]
    return run(
        "pope",
        folder / name,
        data=lines(folder / "coco_pope_random.json", data),
        answers=lines(folder / f"{name}.jsonl", answers),
    )


def test_pope(tmp_path):
    """TP 2, FN 1, FP 1, TN 1."""
    found = pope(tmp_path, ["Yes", "yes, two", "No", "Yes.", "There is no such thing"])
    scores = {name: round(score["value"], 3) for name, score in found["scores"].items()}
    assert scores == {"accuracy": 60, "precision": 66.667, "recall": 66.667, "f1": 66.667, "yes_ratio": 60}
    assert found["accounting"]["scored"] == 5 and found["caveats"] == []
    always = pope(tmp_path, ["Yes"] * 5, "always")["scores"]
    assert always["recall"]["value"] == 100 and always["f1"]["value"] == 75 and always["yes_ratio"]["value"] == 100
    never = pope(tmp_path, ["No"] * 5, "never")["scores"]
    assert never["f1"]["value"] == 0 and "precision" not in never  # nothing to divide by


def test_missing_answers_are_counted(tmp_path):
    found = pope(tmp_path, ["Yes", "Yes"])
    assert found["accounting"]["failed"] == {"no answer: not in the file": 3}
    assert found["scores"]["accuracy"]["n"] == 2 and "3 questions" in found["caveats"][0]


QUESTIONS = [{"question_id": n, "image": f"{n}.jpg", "text": f"Is there a {n}?", "label": "no"} for n in (1, 2)]


@pytest.mark.parametrize("form", ["list", "lines", "commas"])
@pytest.mark.parametrize("name", ["answer", "text", "prediction", "response"])
def test_answers_as_others_publish_them(tmp_path, form, name):
    asked = [{"question_id": 2, "prompt": "Is there a 2?\nAnswer with one word."}, {"question_id": 1}]
    texts = [json.dumps({**record, name: "No"}) for record in asked]
    written = {"list": f"[{', '.join(texts)}]", "lines": "\n".join(texts), "commas": ",\n".join(texts) + ","}
    (tmp_path / "answers.json").write_text(written[form])
    (tmp_path / "data.jsonl").write_text(json.dumps(QUESTIONS, indent=1))
    found = run("pope", tmp_path / "out", data=str(tmp_path / "data.jsonl"), answers=str(tmp_path / "answers.json"))
    assert found["scores"]["accuracy"] == {"value": 100, "low": 100, "high": 100, "n": 2}


REFUSED = {
    "answers 'is there a 2.*' as 1, and .* asks 'is there a 1.*: another order": [
        {"question": "Is there a 2?", "answer": "No"},
        {"question": "Is there a 1?", "answer": "No"},
    ],
    "no field `answer`, .*; found 'question_id', 'said'": [{"question_id": 1, "said": "No"}],
    "no field `answer`": [{key: one[key] for key in ("question_id", "image", "text")} for one in QUESTIONS],
    "none of its 1 records holds an answer": [{"question_id": 1, "answer": None}],
    "field `answer`: an answer is a text": [{"question_id": 1, "answer": ["No"]}],
    "answers '7', which .* its first ones are 1, 2": [{"question_id": 7, "answer": "No"}],
}


@pytest.mark.parametrize("words", REFUSED)
def test_answers_that_would_be_scored_wrongly_are_refused(tmp_path, words):
    paths = {"data": lines(tmp_path / "data.json", QUESTIONS), "answers": lines(tmp_path / "a.jsonl", REFUSED[words])}
    with pytest.raises(InputError, match=words):
        run("pope", tmp_path / "out", **paths)


def test_mme_adds_accuracy_and_whole_pictures(tmp_path):
    """existence: 3 of 4 right, one of two pictures whole: 75 + 50; code_reasoning: 0 of 2."""
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "existence.txt").write_text(
        "a.png\tIs it?\tYes\tYes\na.png\tIs it not?\tNo\tno.\nb.png\tIs it?\tYes\tI think yes\nb.png\tNot?\tNo\tNo\n"
    )
    (folder / "code_reasoning.txt").write_text("a.png\tRight?\tYes\tNo\na.png\tWrong?\tNo\tYes\n")
    found = run("mme", tmp_path / "out", answers=str(folder))
    values = {name: score["value"] for name, score in found["scores"].items()}
    assert values == {"perception": 125, "cognition": 0, "existence": 125, "code_reasoning": 0}
    assert found["accounting"]["notes"] == {UNREADABLE: {"scores": 1, "total": 1}}
    assert len(PERCEPTION) + len(COGNITION) == 14 and "posters" in found["caveats"][0]
    picture(tmp_path / "release" / "existence" / "a.png")
    items = read_mme(folder / "existence.txt", tmp_path / "release")
    assert items[0][0].question[0].image == tmp_path / "release" / "existence" / "a.png"
    (folder / "existence.txt").write_text("a.png\tIs it?\tperhaps\n")
    with pytest.raises(InputError, match=r"existence.txt:1"):
        read_mme(folder)


def test_seedbench_by_category(tmp_path):
    def question(number, kind, answer):
        choices = {f"choice_{letter}": f"thing {letter}" for letter in "abcd"}
        named = {"question_id": number, "question_type_id": kind, "data_id": f"{number}.png", "answer": answer}
        return {**named, "question": "Which?", "data_type": "image", **choices}

    data = {
        "questions": [question("1", 1, "A"), question("2", 1, "B"), question("3", 4, "D")],
        "question_type": {"Scene Understanding": 1, "Instance Location": 4},
    }
    (tmp_path / "SEED.json").write_text(json.dumps(data))
    said = [("1", "A"), ("2", "thing b"), ("3", "no idea")]
    answers = lines(tmp_path / "said.jsonl", [{"question_id": n, "prediction": text} for n, text in said])
    found = run("seedbench", tmp_path / "out", data=str(tmp_path / "SEED.json"), answers=answers)
    values = {name: round(score["value"], 2) for name, score in found["scores"].items()}
    assert values == {
        "accuracy": 66.67,
        "accuracy: Scene Understanding": 100,
        "accuracy: Instance Location": 0,
    }
    with pytest.raises(InputError, match="name the questions with --data"):
        run("seedbench", tmp_path / "other", answers=answers)


def test_any_questions(tmp_path):
    data = [
        {"id": 1, "question": "What?", "answer": ["a red ball", "ball"], "prediction": "The ball.", "category": "x"},
        {"id": 2, "question": "Which?", "choices": ["cat", "dog"], "answer": "dog", "prediction": "B", "category": "y"},
        {"id": 3, "question": "How many?", "answer": 3, "prediction": "4", "category": "y"},
    ]
    found = run("vqa", tmp_path / "out", answers=lines(tmp_path / "all.jsonl", data))
    values = {name: round(score["value"], 2) for name, score in found["scores"].items()}
    assert values == {"accuracy": 66.67, "accuracy: x": 100, "accuracy: y": 50}
    faulty = lines(tmp_path / "faulty.jsonl", [{"id": 1, "question": "What?"}])
    with pytest.raises(InputError, match="field `answer`"):
        run("vqa", tmp_path / "none", answers=faulty)


def test_a_question_holds_pictures_and_choices(tmp_path):
    name = picture(tmp_path / "images" / "a.png")
    record = {"id": 1, "image": name, "question": "Which?", "choices": ["cat", "dog"], "answer": "B"}
    config = EvalConfig(benchmark="vqa", data=lines(tmp_path / "q.jsonl", [record]), model="m")
    from limner.eval.benchmark import prompt_of
    from limner.eval.run import collect

    items, _, _ = collect(config)
    document = prompt_of(make_benchmark(config, items).items[0])
    assert len(document.images) == 1 and document.text.endswith("Which?\nA. cat\nB. dog")


def test_the_guard_over_runs_of_pope(tmp_path, capsys):
    pope(tmp_path, ["Yes", "Yes", "Yes", "No", "No"], "before")
    pope(tmp_path, ["Yes", "No", "Yes", "No", "No"], "after")
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert guard([*folders, "--limits", "{pope.accuracy: 25}"]) == 0
    assert guard([*folders, "--limits", "{pope.accuracy: 10}"]) == 1
    assert "CROSSED" in capsys.readouterr().out
    assert guard([*folders, "--limits", "{pope.accuracy: 10}", "--certain", "true"]) == 0  # five questions prove little
    assert guard([*reversed(folders), "--limits", "{pope.accuracy: 0}"]) == 0
