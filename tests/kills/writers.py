"""What limner writes that is to appear whole: who writes it, and what a reader of it must find.

| writer         | what is written               | a reader finds                   | a leftover is                |
|----------------|-------------------------------|----------------------------------|------------------------------|
| page           | a file                        | the text before or the new       | any other file               |
| answer         | answer.md and its pictures    | text and pictures of one answer  | a second folder of pictures  |
| tasks          | a folder of tasks, pictures   | the tasks before or the new      | anything beside the folder   |
| shards         | tar files and their index     | the documents before or the new  | anything beside the folder   |
| export         | a folder of answers           | the answers before or the new    | anything beside the folder   |
| checkpoint     | a model's folder              | the weights before or the new    | anything beside the folder   |
| release        | a checked folder with a card  | the weights before or the new    | anything beside the folder   |
| index          | a new index in LanceDB        | none, or some whole documents    | a file that no version needs |
| index, updated | changed and added documents   | each as it was or is to be       | a file that no version needs |
| run            | GRPO's checkpoints, its model | whole checkpoints, the last kept | anything beside those        |

A run goes on from the last checkpoint, and ends with the weights of one that was never killed.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

from PIL import Image

from limner.configs.whole import take_back, write_atomically
from limner.data.insertion.tasks import make_tasks, read_tasks, write_tasks
from limner.data.shards import ShardWriter, read_documents
from limner.eval.run import EvalConfig, collect, write_export
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.documents.rendering import save as save_document
from limner.report.release.publish import Request, write_release
from limner.retrieval.index import store
from limner.retrieval.index.encoders import Encoders
from limner.retrieval.index.store import Index
from limner.train.objective.algorithm import AlgorithmConfig
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.train.trainer import InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import outlines, story

from ..eval.benchmark_data import write_mmie
from ..retrieval.small_encoders import Colours, Words, document
from ..train.runs import Illustrated, dataset, settings
from .campaign import Writer


def light_writers() -> list[Writer]:
    """Those that need no model."""
    return [
        Writer("page", partial(_page, "new " * 50_000), _page_seen, partial(_page, "old"), share=1),
        Writer(
            "answer",
            partial(_answer, ("blue", "green", "red")),
            _answer_seen,
            partial(_answer, ("red", "blue")),
            files=_answer_files,
        ),
        Writer("tasks", partial(_tasks, 5), _tasks_seen, partial(_tasks, 3)),
        Writer("shards", partial(_shards, 30), _shards_seen, partial(_shards, 20)),
    ]


def writers(root: Path) -> list[Writer]:
    """All; root: a folder for what they read, with three models in it, `0`, `1` and `2`."""
    answers = write_mmie(root / "answers")
    run = partial(_run, root / "0")
    return [
        *light_writers(),
        Writer("export", partial(_export, answers, 0), _export_seen, partial(_export, answers, 2)),
        Writer("checkpoint", partial(_checkpoint, root / "1"), _weights, partial(_checkpoint, root / "2")),
        Writer("release", partial(_release, root / "0"), _weights, partial(_release, root / "1"), share=1),
        Writer("index", partial(_index, NEW), _index_seen, None, _some_documents, in_parent=False, files=_index_files),
        Writer(
            "index, updated",
            partial(_index, NEW),
            _index_seen,
            partial(_index, OLD),
            _old_or_new,
            in_parent=False,
            files=_index_files,
        ),
        Writer("run", partial(run, 3), _run_seen, partial(run, 1), _whole_checkpoints, share=1),
    ]


def _page(text: str, folder: Path) -> None:
    write_atomically(folder / "page.html", text)


def _page_seen(folder: Path) -> str | None:
    path = folder / "page.html"
    return _digest(path.read_bytes()) if path.exists() else None


def _answer(colours: tuple[str, ...], folder: Path) -> None:
    pictures = [ImageSegment(Image.new("RGB", (64, 64), colour), alt=colour) for colour in colours]
    save_document(InterleavedDocument((TextSegment(f"{len(colours)} pictures"), *pictures)), folder / "answer.md")


def _answer_seen(folder: Path) -> list[Any] | None:
    path = folder / "answer.md"
    if not path.exists():
        return None
    text = path.read_text()
    named = [unquote(name) for name in re.findall(r"\]\((.*?)\)", text)]
    return [text.partition("\n")[0], *(Image.open(folder / name).convert("RGB").getpixel((0, 0)) for name in named)]


def _answer_files(folder: Path) -> list[str]:
    """The one folder of pictures has a number, or none."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return [re.sub("^answer_images(-[0-9]+)?", "answer_images", path) for path in paths]


def _tasks(count: int, folder: Path) -> None:
    documents = [story(outline, f"d{number}") for number, outline in enumerate(outlines(0, count))]
    write_tasks({"train": make_tasks(documents, distractors=1, abstain_share=0)[0]}, folder / "tasks")


def _tasks_seen(folder: Path) -> list[Any] | None:
    if not take_back(folder / "tasks").exists():
        return None
    tasks = read_tasks(folder / "tasks" / "train.jsonl")
    return [(task.id, [_digest(c.image.tobytes()) for c in task.candidates if c.image]) for task in tasks]


def _shards(count: int, folder: Path) -> None:
    with ShardWriter(folder / "shards", overwrite=True, max_records=8) as writer:
        for number in range(count):
            text = TextSegment(f"{number} of {count}", True)
            writer.write(InterleavedDocument((text,), f"d{number}", {"kind": "interleaved"}))


def _shards_seen(folder: Path) -> list[str] | None:
    if not take_back(folder / "shards").exists():
        return None
    return [document.text for document in read_documents(folder / "shards", "train", shuffle_seed=None)]


def _export(answers: Path, limit: int, folder: Path) -> None:
    config = EvalConfig(answers=str(answers), limit=limit, out=str(folder / "out"), export=str(folder / "export"))
    items, given, _ = collect(config)
    items = items[: limit or None]
    write_export(config, SimpleNamespace(items=items), given or {})


def _export_seen(folder: Path) -> list[Any] | None:
    if not take_back(folder / "export").exists():
        return None
    records = json.loads((folder / "export" / "data.json").read_text())
    names = [part["image"] for record in records for part in record["answer"] if part["image"]]
    return [len(records), *(_digest((folder / "export" / name).read_bytes()) for name in names)]


def _checkpoint(model: Path, folder: Path) -> None:
    save(load(model), folder / "model")


def _release(model: Path, folder: Path) -> None:
    write_release(Request(str(model), "me/tiny", samples=0), folder / "model")


def _weights(folder: Path) -> str | None:
    if not take_back(folder / "model").exists():
        return None
    return weights(folder / "model")


def weights(checkpoint: Path) -> str:
    """Of a checkpoint that loads."""
    values = load(checkpoint).model.state_dict().values()
    return _digest(b"".join(value.contiguous().numpy().tobytes() for value in values))


# ---- an index ----

OLD = [document(f"d{number}", "The old cat.", ("red", f"old {number}")) for number in range(4)]
NEW = [document(f"d{number}", "The new cat.", ("blue", "new"), ("green", "")) for number in range(1, 6)]
ENCODERS = Encoders(Words(), Colours())


def _index(documents: list[InterleavedDocument], folder: Path) -> None:
    store.BATCH_DOCUMENTS, store.KEPT_VERSIONS = 2, timedelta(0)
    place = folder / "index"
    index = Index.open(place, ENCODERS) if Index.exists(place) else Index.create(place, ENCODERS)
    index.add(documents, whole=True)


def _index_seen(folder: Path) -> dict[str, Any] | None:
    """Every document with its text and pictures."""
    if not Index.exists(folder / "index"):
        return None
    index = Index.open(folder / "index", ENCODERS)
    hits = index.search("cat", limit=1000) if index.documents else []
    assert {hit.chunk.document for hit in hits} == {*index.documents}
    return {hit.chunk.document: (hit.chunk.text, [_digest(p.data) for p in hit.chunk.pictures]) for hit in hits}


def _some_documents(seen: Any, _: Any, after: Any) -> bool:
    return seen is None or all(after[name] == found for name, found in seen.items())


def _old_or_new(seen: Any, before: Any, after: Any) -> bool:
    if before is None:
        return _some_documents(seen, before, after)
    kept = {*before} & {*after} <= {*seen}
    return kept and all(found in (before.get(name), after.get(name)) for name, found in seen.items())


def _index_files(folder: Path) -> list[str]:
    """LanceDB names its files by chance: of each its kind, and the folder of its table."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return ["/".join([*path.parts[:3], path.suffix]) for path in paths]


# ---- a run ----


def _run(model: Path, steps: int, folder: Path) -> None:
    """As `limner grpo --resume_from_checkpoint last`, or without that where there is no checkpoint."""
    run = folder / "run"
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    args = settings(run, max_steps=steps, per_device_train_batch_size=4, max_completion_length=24, **saving)
    resume = resume_point(run, "last" if checkpoints(run) else None)
    trainer = InterleavedGRPOTrainer(load(model), Illustrated(), AlgorithmConfig(), args, dataset())
    trainer.train(resume_from_checkpoint=resume)
    if steps == 3:
        trainer.save_policy(run / "model")


def _run_seen(folder: Path) -> dict[str, str] | None:
    run = folder / "run"
    found = [*checkpoints(run), *([run / "model"] if take_back(run / "model").exists() else [])]
    return {path.name: weights(path) for path in found} or None


def _whole_checkpoints(seen: Any, before: Any, after: Any) -> bool:
    """Each as a run that is never killed has it; with the last two kept, step 1 may be gone when there is step 3."""
    if seen is None:
        return before is None
    known = {**(before or {}), **after}
    right = all(known.get(name, found) == found for name, found in seen.items())  # step 1 is known if it was before
    return right and [*seen] in (
        [[f"checkpoint-{step}" for step in range(first, last + 1)] for first, last in ((1, 1), (1, 2), (1, 3), (2, 3))]
        + [["checkpoint-2", "checkpoint-3", "model"]]
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
