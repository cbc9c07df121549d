"""Tasks made of documents: the gold stands where the picture stood, and disk gives back what was written."""

import json

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, Placement, taken_out
from limner.data.insertion.tasks import make_tasks, read_source, read_tasks, write_source, write_tasks
from limner.data.shards import ShardWriter
from limner.worlds.picture_stories.scenes import outlines, story


def documents(count=30):
    from dataclasses import replace

    from limner.models.documents.document import ImageSegment

    found = []
    for number, outline in enumerate(outlines(0, count)):
        document = story(outline, f"d{number}")
        captions = iter([scene.words for scene in outline])
        segments = [replace(s, alt=next(captions)) if isinstance(s, ImageSegment) else s for s in document.segments]
        found.append(replace(document, segments=tuple(segments)))
    return found


def test_the_gold_is_what_stood_in_the_document_and_distractors_are_not():
    sources = documents()
    tasks, counts = make_tasks(sources, distractors=4, abstain_share=0.3, seed=1)
    assert counts["tasks"] == len(tasks) == len(sources)
    assert 3 < counts["tasks without gold"] < 18
    for task, document in zip(tasks, sources, strict=True):
        text, placements, pictures = taken_out(document.completion)
        assert task.id == document.id and task.sentences == text and task.question == document.prompt.text
        assert len(task.candidates) == len(pictures) + 4  # with gold or without, so that the number tells nothing
        shown = [(p.after, task.candidates[p.candidate - 1].image) for p in task.gold]
        assert not task.gold or shown == [(p.after, pictures[p.candidate - 1].image) for p in placements]
        chosen = {p.candidate for p in task.gold}
        wrong = [c for number, c in enumerate(task.candidates, 1) if number not in chosen]
        assert not {c.caption for c in wrong} & {picture.alt for picture in pictures}
        assert all(c.source != document.id for c in wrong)
    places = [p.candidate for task in tasks for p in task.gold]
    assert max(places.count(number) for number in set(places)) < len(places) / 3  # shuffled


def test_a_group_is_held_out_together(tmp_path):
    lines = [{"prompt": f"{n}", "answer": ["a"], "group": f"g{n % 2}"} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parts, problems = read_source(tmp_path, 0.5)
    groups = [{document.meta["group"] for document in part} for part in parts.values()]
    assert sorted(map(len, parts.values())) in ([40], [20, 20]) and not problems
    assert sum(map(len, groups)) == len(set().union(*groups)) == 2


def test_the_same_seed_makes_the_same_tasks():
    def made(seed):
        tasks, _ = make_tasks(documents(8), distractors=3, seed=seed)
        return [[c.id for c in task.candidates] for task in tasks], [task.gold for task in tasks]

    assert made(0) == made(0) != made(1)


def test_hard_distractors_stand_for_half_and_never_for_the_gold():
    sources = documents(12)
    asked = []

    def hard(text, limit):
        asked.append(text)
        own = Candidate(Image.new("RGB", (2, 2)), "own", id="d0#1", source="d0")
        same = Candidate(Image.new("RGB", (2, 2)), sources[0].images[0].alt, id="x#1", source="x")
        return [own, same, *(Candidate(None, f"near {n}", "secret", f"y#{n}", "y") for n in range(limit))]

    tasks, counts = make_tasks(sources[:1] + sources[6:], distractors=4, abstain_share=0, seed=0, hard=hard)
    first = tasks[0]
    near = [c for c in first.candidates if c.source == "y"]
    assert len(near) == 2 and not any(c.context for c in near)
    assert not any(c.caption == "own" or c.source == "x" for c in first.candidates)
    assert counts["hard distractors"] == 2 * len(tasks)
    text = taken_out(sources[0].completion)[0]
    assert asked[0] == " ".join(text[0:2]).strip()


def test_what_gives_no_task_is_counted():
    from limner.models.documents.document import InterleavedDocument, TextSegment

    bare = InterleavedDocument((TextSegment("No picture here."),), "bare")
    _, counts = make_tasks([bare, *documents(2)], distractors=50, abstain_share=0)
    assert counts["without pictures"] == 1 and counts["distractors missing"] > 0
    for setting, named in (({"distractors": -1}, "distractors: -1"), ({"abstain_share": 2.0}, "abstain share: 2.0")):
        with pytest.raises(InputError, match=named):
            make_tasks(documents(2), **setting)
    with pytest.raises(InputError, match="without pictures 1"):
        make_tasks([bare])


def test_written_tasks_are_read_back(tmp_path):
    tasks, _ = make_tasks(documents(6), distractors=2)
    written = write_tasks({"train": tasks[:4], "heldout": tasks[4:]}, tmp_path / "out")
    back = read_tasks(tmp_path / "out" / "train.jsonl")
    assert written["train tasks"] == 4 and written["pictures"] <= sum(len(t.candidates) for t in tasks)
    for task, read in zip(tasks, back, strict=False):
        assert (read.question, read.sentences, read.gold, read.id) == (
            task.question,
            task.sentences,
            task.gold,
            task.id,
        )
        for candidate, other in zip(task.candidates, read.candidates, strict=True):
            assert (candidate.caption, candidate.id, candidate.source) == (other.caption, other.id, other.source)
            assert candidate.image.tobytes() == other.image.convert("RGB").tobytes()
    with pytest.raises(InputError, match="at least 9"):
        read_tasks(tmp_path / "out" / "train.jsonl", least=9)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"gold": [{"img": 9, "after": 0}]}, "out of range"),
        ({"gold": [{"img": 1}]}, "`gold`"),
        ({"extra": 1}, "extra"),
        ({"candidates": [{"image": "../../etc/passwd"}]}, "no picture of this folder"),
        ({"sentences": [1]}, "sentences"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, named):
    line = {"id": "a", "question": "", "sentences": ["One."], "candidates": [{"caption": "x"}], "gold": [], "meta": {}}
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps(line) + "\n" + json.dumps(line | change) + "\n")
    with pytest.raises(InputError, match=f"tasks.jsonl:2.*{named}"):
        read_tasks(file)


def test_markdown_and_shards_become_tasks(tmp_path):
    source = tmp_path / "pages"
    source.mkdir()
    for number in range(6):
        picture = Image.new("RGB", (300, 20), (40 * number, 0, 0))
        picture.paste("white", (0, 0, 9, 9))
        picture.save(source / f"{number}.png")
        (source / f"{number}.md").write_text(f"# T{number}\n\nFirst.\n\n![picture {number}]({number}.png)\n\nLast.\n")
    (source / "plain.md").write_text("Words alone.\n\n![gone](gone.png)\n")
    report = write_source(source, tmp_path / "tasks", distractors=2, abstain_share=0, heldout_share=0)
    assert "train tasks 6" in report and "without pictures 1" in report and "gone.png" in report
    task = read_tasks(tmp_path / "tasks" / "train.jsonl")[0]
    assert task.question.startswith("Write an illustrated article") and len(task.candidates) == 3
    (gold,) = task.gold
    assert task.sentences[gold.after - 1].strip() == "First." and task.candidates[gold.candidate - 1].caption

    with ShardWriter(tmp_path / "shards") as writer:
        for number, document in enumerate(documents(6)):
            writer.write(document, "heldout" if number < 2 else "train")
    splits, _ = read_source(tmp_path / "shards")
    assert {split: len(those) for split, those in splits.items()} == {"train": 4, "heldout": 2}
    assert all(isinstance(p, Placement) for p in make_tasks(splits["train"], distractors=1)[0][0].gold)
