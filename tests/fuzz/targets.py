"""What reads input of others: for each reader, how a case is made from a seed, and what is called with it.

A `make` puts the case under a folder of its own and returns what is called. A call returns, which is the reader's
answer (it has accepted, or counted), or raises one of `refuses`; anything else is a fault.
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from limner.configs import parse
from limner.configs.errors import InputError
from limner.configs.yaml_file import read_yaml
from limner.data.insertion.prompt import read_answer
from limner.data.insertion.tasks import read_tasks
from limner.data.prompts import read_prompts
from limner.data.sources.markdown import read_markdown
from limner.data.sources.mramg import read_corpus, read_questions
from limner.data.sources.report import Report
from limner.data.validate import validate
from limner.eval.qualification.preference_pairs import read_pairs
from limner.eval.run import EvalConfig, benchmark_of
from limner.models.chat.endpoint import read_reply
from limner.models.chat.requests import Reply
from limner.models.checkpoints.folder import load
from limner.rewards.judges.grading import load_template, read_verdict
from limner.rewards.judges.questions import read_answer as read_judges_answer
from limner.rewards.judges.questions import read_questions as read_judges_questions
from limner.rewards.remote.client import RemoteFailed, unpack_completions, unpack_output
from limner.train.watch.trajectories import read_trajectories

from .mutations import json_lines, json_text, text_bytes

FILES = Path(__file__).resolve().parents[1] / "files_of_0_1"
Call = Callable[[], Any]


class Target(NamedTuple):
    name: str
    make: Callable[[Random, Path], Call]
    refuses: tuple[type[Exception], ...] = (InputError,)
    share: float = 1.0
    """Of the cases, relative to the others: readers that are slow have fewer."""


# ---- documents, prompts, shards ----

ARTICLE = b"""---
title: Rice
tags: [a, b]
---
# Rice

Wash it. ![a bowl](a.png "Bowl"){width=50%} Then <img src="b.png" alt="b"> wait.

| a | b |
|---|---|
| ![c](c.png) | text |

- one ![[a.png]]
- `code ![no](a.png)`

```python
x = "![no](a.png)"
```

> quoted ![ref][r]

[r]: a.png
"""


def markdown(rng: Random, folder: Path) -> Call:
    shutil.copy(FILES / "markdown" / "1.png", folder / "a.png")
    (folder / "b.png").write_bytes(text_bytes((folder / "a.png").read_bytes(), rng))
    (folder / "case.md").write_bytes(text_bytes(ARTICLE, rng))
    (folder / "sound.md").write_text("# Sound\n\nText. ![a](a.png)\n")

    def call() -> None:
        report = Report()
        read = [document for document, _ in read_markdown(folder, report)]
        said = {Path(document.id).stem for document in read} | {Path(p.file).stem for p in report.problems}
        assert {"case", "sound"} <= said, "neither a document nor a problem"
        kept, lost = sum(len(document.images) for document in read), report.problems.pictures
        assert report.written == kept + lost, "a picture is neither kept nor a problem"

    return call


PROMPTS: list[Any] = [
    {"prompt": "How do I cook rice?", "outline": ["small red circle top left"]},
    {"id": "a", "segments": [{"type": "text", "text": "Hello", "trainable": False}]},
    {"prompt": "And beans?"},
]


def prompts(rng: Random, folder: Path) -> Call:
    (folder / "p.jsonl").write_bytes(json_lines(rng.choice([PROMPTS[:1], PROMPTS[1:2], PROMPTS[::2]]), rng))
    return lambda: read_prompts(folder / "p.jsonl")


def shards(rng: Random, folder: Path) -> Call:
    place = folder / "shards"
    shutil.copytree(FILES / "shards", place)
    tar = rng.choice(sorted(place.glob("*.tar")))
    match rng.randrange(3):
        case 0:
            (place / "index.json").write_bytes(json_text(json.loads((place / "index.json").read_bytes()), rng))
        case 1:
            tar.write_bytes(text_bytes(tar.read_bytes(), rng))
        case _:
            _respell(tar, rng)
    return lambda: validate(place)


def _respell(tar: Path, rng: Random) -> None:
    """A record of a shard with another JSON or another picture, in a tar that is sound."""
    with tarfile.open(tar) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    at = rng.randrange(len(members))
    with tarfile.open(tar, "w") as archive:
        for number, (member, data) in enumerate(members):
            if number == at:
                data = json_text(json.loads(data), rng) if member.name.endswith(".json") else text_bytes(data, rng)
                member.size = len(data)
            archive.addfile(member, BytesIO(data))


PLACED: dict[str, Any] = {
    "id": "t",
    "prompt": "Illustrate.",
    "text": ["One.", " Two."],
    "gold": [{"after": 1, "candidate": 1}],
}


def tasks(rng: Random, folder: Path) -> Call:
    shutil.copy(FILES / "markdown" / "1.png", folder / "a.png")
    candidates = [{"image": "a.png", "caption": "a"}, {"image": "a.png", "caption": "b"}]
    value = {**PLACED, "sentences": PLACED["text"], "candidates": candidates, "meta": {}}
    (folder / "t.jsonl").write_bytes(json_lines([value], rng))
    return lambda: read_tasks(folder / "t.jsonl")


def mramg(rng: Random, folder: Path) -> Call:
    documents = [[1, "Wash rice. <PIC> Wait.", ["p1"]], [2, "Beans. <PIC>", ["p1"]]]
    questions = [{"id": 1, "question": "How?", "provenance": [1], "ground_truth": "Wash. <PIC>", "images_list": ["p1"]}]
    (folder / "doc_recipe.jsonl").write_bytes(json_lines(documents, rng))
    (folder / "recipe_mqa.jsonl").write_bytes(json_lines(questions, rng))
    (folder / "image_collection.json").write_bytes(
        json_text([{"id": "p1", "image_path": "a.png", "image_caption": "a"}], rng)
    )

    def call() -> None:
        try:
            list(read_corpus(folder, report=Report()))
        finally:
            read_questions(folder, report=Report())

    return call


# ---- settings ----

CONFIG = b"""# mine
benchmark: mmie
options: {}
data: d.json
limit: 3
prompt: "{question}"
sampling: {temperature: 0.5, top_k: 3}
seed: 1
judge: &j
  endpoint: {base_url: http://x/v1, model: m, timeout: 3.5, extra_body: {a: [1, 2, {b: null}]}}
suite: {}
"""
FLAGS = ("--limit", "--seed", "--sampling.temperature", "--sampling", "--options.samples", "--judge.endpoint.timeout")
FLAGS += ("--prompt", "--batch_size", "--judge", "--suite.a.limit", "--nothing", "--limit=", "--sampling.top_k.x", "--")


def yaml_and_flags(rng: Random, folder: Path) -> Call:
    (folder / "c.yaml").write_bytes(text_bytes(CONFIG, rng) if rng.random() < 0.7 else CONFIG)
    words = ["--config", str(folder / "c.yaml")]
    for _ in range(rng.randrange(4)):
        words += [rng.choice(FLAGS), text_bytes(b"0.5", rng).decode("utf-8", "surrogateescape")]
    if rng.random() < 0.5:
        return lambda: read_yaml(folder / "c.yaml")
    return lambda: parse((EvalConfig,), [word for word in words if word not in ("-h", "--help")])


# ---- benchmarks ----

QUESTION: dict[str, Any] = {
    "id": "1",
    "question": "q",
    "answer": "yes",
    "prediction": "no",
    "category": "c",
    "image": "a.png",
}
STEPS = [{"text": "One.", "image": "a.png"}, {"text": None, "image": "a.png"}, {"text": "Two.", "image": None}]
BENCHMARKS: dict[str, tuple[str, Any]] = {
    "vqa": ("v.json", [QUESTION]),
    "pope": ("p.json", [{**QUESTION, "question_id": 1, "text": "Is there a dog?", "label": "yes"}]),
    "mme": ("m.json", [{**QUESTION, "question_id": "1", "category": "count"}]),
    "seedbench": (
        "s.json",
        {
            "questions": [
                {**QUESTION, "question_id": "1", "data_id": "a.png", "question_type_id": 1}
                | {f"choice_{c}": c for c in "abcd"}
            ],
            "question_type": {"Scene": 1},
        },
    ),
    "mmie": ("m.json", [{"id": "SA-1", "question": STEPS, "answer": STEPS, "model": "m", "gt_answer": STEPS}]),
    "interleavedbench": (
        "i.json",
        [{"id": "1", "task_name": "t", "question": STEPS, "answer": STEPS, "image": ["a.png"]}],
    ),
    "geneval": ("g.jsonl", [{"tag": "counting", "prompt": "two cats", "include": [{"class": "cat", "count": 2}]}]),
    "ftii": (
        "f.json",
        [{"id": "1", "question": STEPS, "answer": "A", "prediction": "A", "text": "t", "images": ["a.png"]}],
    ),
    "mramg": ("a.json", [{"id": "1", "answer": STEPS, "question": "q"}]),
    "dpgbench": ("d.csv", None),
}
TABLE = b"item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
TABLE += b"question_natural_language\n"
TABLE += b'a,"A cat",k,1,0,entity,whole,entity (cat),Is there a cat?\na,"A cat",k,2,1,attribute,colour,x,Is it red?\n'


def benchmark(rng: Random, folder: Path) -> Call:
    shutil.copy(FILES / "markdown" / "1.png", folder / "a.png")
    kind = rng.choice(list(BENCHMARKS))
    name, value = BENCHMARKS[kind]
    lines = isinstance(value, list) and (name.endswith("l") or rng.random() < 0.3)
    data = text_bytes(TABLE, rng) if value is None else json_lines(value, rng) if lines else json_text(value, rng)
    (folder / name).write_bytes(data)
    read = benchmark_of(kind).thing.records
    return lambda: read(folder / name, None)


def preferences(rng: Random, folder: Path) -> Call:
    sides = {"prompt": "p", "a": PROMPTS[1], "b": PROMPTS[1], "preferred": "a"}
    (folder / "p.jsonl").write_bytes(json_lines([sides], rng))
    return lambda: list(read_pairs(folder / "p.jsonl", "jsonl"))


# ---- judges, rewards ----

BODY = {"choices": [{"message": {"content": "Good. <score>3</score>", "refusal": None}, "finish_reason": "stop"}]}
BODY |= {"usage": {"prompt_tokens": 3, "completion_tokens": 4}}  # type: ignore[dict-item]
SAID = b'<think>hm</think> Fine.\n<score>3</score> [{"question": "Is it red?", "picture": 1}] Answer: yes <img after=1>'


def judge_reply(rng: Random, _: Path) -> Call:
    text = text_bytes(SAID, rng).decode("utf-8", "replace")
    template = load_template("text_relevance")
    readers: list[Call] = [
        lambda: read_reply(json_text(BODY, rng).decode("utf-8", "replace")),
        lambda: read_verdict(Reply(text), template),
        lambda: read_judges_questions(Reply(text)),
        lambda: read_judges_answer(Reply(text)),
        lambda: read_answer(text, 3, 2),
    ]
    return rng.choice(readers)


REQUEST: dict[str, Any] = {"completions": [{"prompt": PROMPTS[1], "answer": PROMPTS[1], "meta": {}}]}
OUTPUT: dict[str, Any] = {"outcome": [0.5], "segments": [[0.5, None]], "breakdown": {"flat": [0.5]}, "failed": {}}


def reward_request(rng: Random, _: Path) -> Call:
    body = json_text(REQUEST, rng)
    return lambda: unpack_completions(json.loads(body))


def reward_answer(rng: Random, _: Path) -> Call:
    body = json_text(OUTPUT, rng)
    return lambda: unpack_output(body)


# ---- what runs left ----


def trajectories(rng: Random, folder: Path) -> Call:
    source = sorted((FILES / "grpo" / "trajectories").iterdir())[0]
    values = [json.loads(line) for line in source.read_text().splitlines()[:3]]
    (folder / source.name).write_bytes(json_lines(values, rng))
    return lambda: list(read_trajectories(folder))


CHECKPOINT_JSON = ("limner.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
CHECKPOINT_JSON += ("image_tokenizer/config.json", "image_tokenizer/image_tokenizer.json")


def checkpoint(rng: Random, folder: Path) -> Call:
    place = folder / "model"
    shutil.copytree(FILES / "grpo" / "model", place)
    file = place / rng.choice(CHECKPOINT_JSON)
    file.write_bytes(json_text(json.loads(file.read_text()), rng))
    return lambda: load(place)


TARGETS = (
    Target("markdown", markdown),
    Target("prompts", prompts),
    Target("shards", shards),
    Target("tasks", tasks),
    Target("mramg", mramg),
    Target("yaml_and_flags", yaml_and_flags, share=0.5),
    Target("benchmark", benchmark, share=2),
    Target("preferences", preferences),
    Target("judge_reply", judge_reply, (ValueError,)),
    Target("reward_request", reward_request, (ValueError, RecursionError)),
    Target("reward_answer", reward_answer, (RemoteFailed,)),
    Target("trajectories", trajectories),
    Target("checkpoint", checkpoint, share=0.3),
)
