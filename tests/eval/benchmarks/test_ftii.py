"""FTII-Bench: what is asked, what an answer says, accuracy and F1, and a run of a file of answers."""

import json
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmark import prompt_of
from limner.eval.benchmarks.ftii import chosen, read
from limner.eval.run import EvalConfig, evaluate

from ..benchmark_data import picture, results


def write_ftii(folder: Path) -> Path:
    """An article of three paragraphs, two with a picture, and a single choice."""
    names = [picture(folder / "images" / f"{name}.png", name) for name in ("red", "green", "blue")]
    flow = {"id": "a", "paragraphs": ["One.", "Two.", "Three."], "images": names, "gold": [names[1], None, 3]}
    choice = {"id": "b", "paragraphs": ["Only."], "images": names, "gold": "images/red.png", "language": "zh"}
    file = folder / "ftii.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (flow, choice)))
    return file


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2),
        ("Picture 3.", 3),
        ("0", 0),
        ("2, I say 2", 2),
        ("1 or 2", None),
        ("9", None),
        ("none", None),
        ("1.5", None),
    ],
)
def test_the_one_number_of_an_answer(text, number):
    assert chosen(text, 3) == number


def test_a_paragraph_is_asked_about_with_those_before_it(tmp_path):
    items = {item.id: item for item, _ in read(write_ftii(tmp_path))}
    assert list(items) == ["a/1", "a/2", "a/3", "b"] and [item.reference for item in items.values()] == list("2031")
    second = prompt_of(items["a/2"])
    assert "One." in second.text and "Two." in second.text and "Three." not in second.text
    assert [image.pixels().getpixel((0, 0)) for image in second.images] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert "or 0" in second.text and "or 0" not in prompt_of(items["b"]).text
    assert items["b"].category == "single choice, zh"


def test_run_of_a_file_of_answers(tmp_path):
    """Paragraph 1 right, 2 flooded, 3 unreadable: one of two pictures found, two inserted."""
    data = write_ftii(tmp_path / "data")
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "a", "prediction": [2, "1", "both"]}\n{"id": "b", "prediction": "Picture 1"}\n')
    run = EvalConfig("ftii", data=str(data), answers=str(answers), out=str(tmp_path / "out"))
    assert evaluate(run)
    found = results(run.out)
    scores = {name: score["value"] for name, score in found["scores"].items()}
    assert scores["accuracy, flow insertion"] == pytest.approx(100 / 3) and scores["accuracy, single choice"] == 100
    assert scores["F1, flow insertion"] == 50
    assert found["accounting"]["notes"] == {"answers without one number of a picture": {"scores": 1, "total": 1}}
    assert "not known to us" in " ".join(found["caveats"])


def test_inserting_nothing_has_no_f1(tmp_path):
    data = write_ftii(tmp_path / "data")
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"id": "a", "prediction": [null, 0]}\n{"id": "b", "prediction": 2}\n')
    run = EvalConfig("ftii", data=str(data), answers=str(answers), out=str(tmp_path / "out"))
    assert evaluate(run)
    found = results(run.out)
    assert found["scores"]["F1, flow insertion"]["value"] == 0
    assert found["scores"]["accuracy, flow insertion"]["value"] == 50
    assert any("1 questions have no answer" in caveat for caveat in found["caveats"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gold": [1, None]}, "2 entries for 3"),
        ({"gold": [4, None, None]}, "4 is neither"),
        ({"gold": None}, "names no picture"),
        ({"images": []}, "`images`"),
        ({"images": ["../../x.png"], "gold": [None] * 3}, "outside"),
        ({"paragraphs": "One."}, "`paragraphs`"),
    ],
)
def test_faults_name_the_record(tmp_path, change, words):
    file = write_ftii(tmp_path)
    record = json.loads(file.read_text().splitlines()[0])
    file.write_text(json.dumps({**record, **change}) + "\n")
    with pytest.raises(InputError, match=words) as fault:
        read(file)
    assert "(a)" in str(fault.value)
