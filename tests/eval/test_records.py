"""Files of others: in whatever form, whatever stands in a field, they are read, or refused by file and record."""

import copy
import json

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmarks import ftii, geneval, interleavedbench, mmie, vqa
from limner.eval.benchmarks.mramg import benchmark as mramg
from limner.eval.benchmarks.object_files import read_detections
from limner.eval.qualification.preference_pairs import read_pairs
from limner.eval.records import read_records

TEXT = {"text": "Peel.", "image": "a.png"}
CLAUSES = [{"class": "dog", "count": 1}, {"class": "cat", "count": 2, "color": "red", "position": ["left of", 0]}]
DOCUMENT = {"segments": [{"type": "text", "text": "Peel."}, {"type": "image", "codes": [1], "candidate": 1}]}
RESPONSE = {"response_content": [["text", "Peel."]]}
CHOICES = {f"choice_{letter}": letter for letter in "abcd"}
READERS = {
    "mmie": (mmie.read, {"id": "SA-1", "question": [TEXT], "answer": [TEXT], "gt_answer": [TEXT], "category": "SA"}),
    "interleavedbench": (
        interleavedbench.read,
        {
            "id": "1",
            "image": ["a.png"],
            "task_name": "report",
            "conversations": [{"from": "human", "value": "<BEGIN> Draw."}, {"from": "gpt", "value": "<image>"}],
        },
    ),
    "vqa": (vqa.read_vqa, {"id": 1, "image": ["a.png"], "question": "?", "answer": ["a"], "choices": ["a", "b"]}),
    "vqa answers": (vqa.read_vqa, {"question_id": 1, "prediction": "a"}),
    "pope": (vqa.read_pope, {"question_id": 1, "image": "a.png", "text": "Is it?", "label": "yes", "answer": "no"}),
    "pope answers": (vqa.read_pope, {"question_id": 1, "prompt": "Is it?", "text": "no"}),
    "seedbench": (
        vqa.read_seedbench,
        {
            "questions": [{"question_id": "1", "question": "?", "answer": "A", "data_id": "a", **CHOICES}],
            "question_type": {"Scene": 1},
        },
    ),
    "seedbench answers": (vqa.read_seedbench, {"question_id": "1", "prediction": "A"}),
    "geneval": (geneval.read, {"tag": "position", "prompt": "dogs", "include": CLAUSES, "exclude": CLAUSES[:1]}),
    "detections": (
        read_detections,
        {"id": "00000/0", "objects": [{"class": "dog", "score": 0.9, "box": [0, 0, 1, 1], "color": "red"}]},
    ),
    "ftii": (
        ftii.read,
        {"id": "1", "paragraphs": ["a", "b"], "images": ["a.png"], "gold": [None, 1], "prediction": [0, "1"]},
    ),
    "ftii answers": (ftii.read, {"id": "1", "prediction": [0, "1"]}),
    "mramg": (
        mramg.read,
        {"id": "q1", "subset": "web", "answer": "Peel. <img1>", "candidates": [12], "documents": ["1"], "faults": {}},
    ),
    "mramg documents": (mramg.read, {"id": "web/q1", "document": DOCUMENT, "candidates": ["a"]}),
    "pairs": (
        lambda path: [*read_pairs(path, "jsonl")],
        {"id": "1", "prompt": "?", "a": DOCUMENT, "b": "c", "preferred": "tie"},
    ),
    "mmrb2": (
        lambda path: [*read_pairs(path, "mmrb2")],
        {
            "id": "1",
            "prompt_content": [["text", "?"], ["image", "a.png"]],
            "response_a": RESPONSE,
            "response_b": RESPONSE,
            "chosen": "A",
        },
    ),
    "opening": (
        lambda path: [*read_pairs(path, "opening")],
        {"data_id": "01", "model_A": {"name": "M1"}, "model_B": {"name": "M2"}, "winner": "A"},
    ),
}
STRANGE = (None, True, -1, 1.5, float("nan"), "", "x\0", "../../x", "x" * 5000, [], [1], {}, {"text": 1}, [[["text"]]])
"""Put in the place of every value of a record, one at a time."""


def places(value, path=()):
    """The path to every value inside, the whole included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*path, key))


def replaced(record, path, value):
    if not path:
        return value
    changed = copy.deepcopy(record)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return changed


def without(record, path):
    changed = copy.deepcopy(record)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return changed


@pytest.mark.parametrize("name", READERS)
def test_a_field_of_another_type_is_one_line_that_names_file_and_record(tmp_path, name):
    read, sound = READERS[name]
    path = tmp_path / "records.json"
    is_pairs = name in ("mmrb2", "opening")
    path.write_text(json.dumps([sound] if is_pairs else sound))
    read(path)
    paths = list(places(sound))
    changed = [replaced(sound, place, value) for place in paths for value in STRANGE]
    changed += [without(sound, place) for place in paths if place]
    refused = 0
    for record in changed:
        path.write_text(json.dumps([record] if is_pairs else record))
        try:
            read(path)
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}") and len(str(error).splitlines()) == 1, (record, error)
    assert refused > len(paths)


def test_records_may_be_a_mapping_of_ids_or_of_categories(tmp_path):
    path = tmp_path / "data.json"
    for value in (
        {"a": {"x": 1}, "b": {"x": 2}},
        {"one": [{"id": "a", "x": 1}], "two": [{"question_id": "b", "x": 2}]},
    ):
        path.write_text(json.dumps(value))
        assert [(record["id"], record["x"]) for _, record in read_records(path)] == [("a", 1), ("b", 2)]
