"""What two processes do, and processes that are killed: the program that `test_distributed.py` launches."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from limner.data.conversion import convert, open_source
from limner.data.mixture import SourceConfig
from limner.data.prompts import pack_prompt
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.pictures.contract import VQImageTokenizer
from limner.rewards.base import RewardOutput
from limner.rewards.hybrid import HybridReward
from limner.train import warmup
from limner.train.before.preflight import run_checks
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.objective.losses import NORMALISATIONS
from limner.train.scale.run_folder import resume_point
from limner.train.trainer import GRPOConfig, InterleavedGRPOTrainer
from limner.train.warmup import WarmupConfig, WarmupTrainer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

from ..data_files import encoded, put, put_lines, put_tar
from .launched import Illustrated
from .runs import brief

DOCUMENTS = 24
FORMS = {"jsonl": 3, "chat": 5, "imagefolder": 6, "webdataset": 7, "markdown": 9}
"""Source -> documents of it in a mixture by size."""


def warm(root: Path, directory: Path, data="data", normalisation="token", **changes) -> WarmupTrainer:
    args = TrainingArguments(**brief(directory, **{"per_device_train_batch_size": 2, "learning_rate": 1e-2, **changes}))
    policy = load(root / "start")
    length = len(policy.processor.encode(document(0, policy.processor)))
    config = WarmupConfig(data=str(root / data), pack_length=length, heldout_batches=0, normalisation=normalisation)
    return warmup.run(config, args, policy)


def grpo(
    root: Path, directory: Path, normalisation="modality-balanced", resume=None, **changes
) -> InterleavedGRPOTrainer:
    values = {"max_completion_length": 48, "num_generations": 8, "learning_rate": 1e-2, **changes}
    args = GRPOConfig(**brief(directory, **values))
    algorithm = AlgorithmConfig(
        normalisation=normalisation,
        process_weight=0.5,
        beta=PerModality(0.1, 0.1),
        reward_aggregation="normalise-then-sum",
    )
    reward = HybridReward([(Illustrated(), 1.0), (Several(), 1.0)])
    reward.over_ranks = gather_object
    prompts = [pack_prompt(story_prompt(SCENES[i : i + 2])) for i in range(0, 16, 2)]
    dataset = Dataset.from_dict({"prompt": prompts})
    trainer = InterleavedGRPOTrainer(load(root / "start"), reward, algorithm, args, dataset)
    trainer.train(resume_from_checkpoint=resume_point(directory, resume))
    return trainer


class Several(Illustrated):
    """Applies to answers with an odd number of segments; the worst of a group may be on the other process."""

    name = "several"

    def __call__(self, completions):
        output = super().__call__(completions)
        outcome = [1 / (1 + len(c.answer.text)) if len(c.answer.segments) % 2 else None for c in completions]
        return RewardOutput(outcome, output.segments)


class Uneven(Illustrated):
    """The first process's group varies, the second one's is dead."""

    def __call__(self, completions):
        output = super().__call__(completions)
        return RewardOutput([0.5] * len(completions), output.segments) if int(os.environ["RANK"]) else output


def unlike_ranks(root: Path, rank: int) -> tuple[list[tuple[str, bool]], float]:
    """What the checks say of a live and a dead group; the gap that is logged where only the second process has one."""
    values = {"max_steps": 1, "max_completion_length": 48, "num_generations": 4, "per_device_train_batch_size": 2}
    args = GRPOConfig(**brief(root / "run", **values, gradient_accumulation_steps=2, steps_per_generation=2))
    prompts = Dataset.from_dict({"prompt": [pack_prompt(story_prompt(SCENES[i : i + 2])) for i in range(0, 16, 2)]})
    trainer = InterleavedGRPOTrainer(load(root / "start"), Uneven(), AlgorithmConfig(), args, prompts)
    checks, rows_of = [], trainer.rows_of

    class Checks(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            checks.extend((check.name, check.passed) for check in run_checks(trainer))
            trainer.rows_of = shifted

    def shifted(batch):
        rows = rows_of(batch)
        rows["old_logp_BT"][2:] += 0.5 * rank  # of the second micro-batch
        return rows

    trainer.add_callback(Checks())
    trainer.train()
    return checks, next(entry["replay_gap/text"] for entry in trainer.state.log_history if "loss" in entry)


class Solved(Illustrated):
    """Every second prompt is solved: its group is dead."""

    def __call__(self, completions):
        output = super().__call__(completions)
        solved = [len(completion.prompt.meta["outline"][0]) % 2 for completion in completions]
        return RewardOutput([1.0 if s else r for s, r in zip(solved, output.outcome, strict=True)], output.segments)


def refilled(root: Path, batch: int) -> tuple[torch.Tensor, list[str]]:
    """A step on groups of four, dead ones replaced: the weights, and the outlines of this process's rollouts."""
    values = {"max_steps": 1, "max_completion_length": 48, "num_generations": 4, "per_device_train_batch_size": batch}
    args = GRPOConfig(**brief(root / "run", **values, optim="sgd", learning_rate=0.5))
    prompts = Dataset.from_dict({"prompt": [pack_prompt(story_prompt(SCENES[i : i + 2])) for i in range(0, 32, 2)]})
    seen: list = []
    algorithm = AlgorithmConfig(refill_rounds=3)
    trainer = InterleavedGRPOTrainer(load(root / "start"), Solved(), algorithm, args, prompts, [seen.append])
    trainer.train()
    return parameters(trainer), [item.completion.prompt.meta["outline"][0] for item in seen[0].rollouts]


def parameters(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.policy.model.parameters()])


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def stall_in_second_save(marker: Path) -> None:
    """The second checkpoint's image tokenizer, its last part but one, takes for ever."""
    original, saves = VQImageTokenizer.save_pretrained, []

    def save_pretrained(self, directory):
        saves.append(directory)
        if len(saves) == 2:
            marker.write_text(str(os.getpid()))
            time.sleep(600)
        original(self, directory)

    VQImageTokenizer.save_pretrained = save_pretrained


EPOCHS = {"max_steps": DOCUMENTS // 2}
"""Two of them, for two ranks with rows of two documents."""
SAVING = {"save_strategy": "steps", "save_steps": 1}
LAYOUTS = {"at-once": (4, 1), "accumulated": (2, 2)}
"""Rollouts a device and step, steps accumulated: two processes make eight rollouts of either."""


def play(part: str, root: Path) -> None:
    rank = int(os.environ.get("RANK", 0))
    if part == "together":
        for data in ("one-shard", "two-shards"):
            read_and_tell(
                root / f"{data}-{rank}.txt", lambda data=data: warm(root, root / f"run-{data}", data, **EPOCHS)
            )
        read_and_tell(root / f"five-{rank}.txt", lambda: five_sources(root))
        for normalisation in NORMALISATIONS:
            trainer = whole_epoch(root, root / f"run-{normalisation}", normalisation, DOCUMENTS // 2)
            torch.save((parameters(trainer), losses(trainer)), root / f"warmup-{normalisation}-{rank}.pt")
        for normalisation in NORMALISATIONS:
            for layout, (batch, accumulation) in LAYOUTS.items():
                trainer = step(root, root / "run", normalisation, batch, accumulation)
                torch.save((parameters(trainer), losses(trainer)), root / f"grpo-{normalisation}-{layout}-{rank}.pt")
        (root / f"unlike-{rank}.json").write_text(json.dumps(unlike_ranks(root, rank)))
        torch.save(refilled(root, 8), root / f"refilled-{rank}.pt")
    elif part == "warmup-killed":
        stall_in_second_save(root / "marker")
        warm(root, root / "killed", max_steps=3, **SAVING)
    elif part == "warmup-resumed":
        resumed = warm(root, root / "killed", max_steps=3, resume_from_checkpoint="last", **SAVING)
        straight = warm(root, root / "straight", max_steps=3)
        torch.save([parameters(resumed), parameters(straight)], root / f"resumed-{rank}.pt")
    elif part == "grpo-killed":
        stall_in_second_save(root / "marker")
        grpo(root, root / "killed", **BUFFERED, **SAVING)
    elif part == "grpo-resumed":
        resumed = grpo(root, root / "killed", resume="last", **BUFFERED, **SAVING)
        straight = grpo(root, root / "straight", **BUFFERED)
        torch.save([parameters(resumed), parameters(straight)], root / f"resumed-{rank}.pt")


def read_and_tell(file: Path, train: Callable[[], object]) -> None:
    """Writes down which documents a warm-up sees, a line each."""
    original = WarmupTrainer.compute_loss

    def compute_loss(self, model, inputs, *rest, **options):
        processor = self.policy.processor
        with file.open("a") as opened:
            for ids_T in inputs["token_batch"].ids_BT:
                text = processor.tokenizer.decode(ids_T[ids_T < processor.vocabulary.text_size])
                opened.writelines(f"{name}\n" for name in re.findall("record ([a-z]+ [0-9]+)", text))
                if "record" not in text:
                    opened.write(f"{document_of(processor.vocabulary, ids_T)}\n")
        return original(self, model, inputs, *rest, **options)

    WarmupTrainer.compute_loss = compute_loss
    train()
    WarmupTrainer.compute_loss = original


def five_sources(root: Path) -> WarmupTrainer:
    """Rows of an epoch and more, by two worker processes each; nothing is encoded before."""
    changes = {"max_steps": 12, "per_device_train_batch_size": 1, "dataloader_num_workers": 2}
    args = TrainingArguments(**brief(root / "run-five", **changes))
    sources = [SourceConfig(str(root / "forms" / name), count) for name, count in FORMS.items()]
    return warmup.run(WarmupConfig(sources=sources, pack_length=256, heldout_batches=0), args, load(root / "start"))


BUFFERED = {"max_steps": 4, "per_device_train_batch_size": 4, "steps_per_generation": 2}
"""Each batch of rollouts serves two steps, so the first checkpoint stands inside one."""


def whole_epoch(root: Path, directory: Path, normalisation: str, batch: int) -> WarmupTrainer:
    changes = {"max_steps": 1, "per_device_train_batch_size": batch, "optim": "sgd", "learning_rate": 0.5}
    return warm(root, directory, normalisation=normalisation, **changes)


def step(root: Path, directory: Path, normalisation: str, batch: int, accumulation: int) -> InterleavedGRPOTrainer:
    return grpo(
        root,
        directory,
        normalisation,
        max_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        optim="sgd",
        learning_rate=0.5,
    )


def write_documents(directory: Path, processor, max_records: int = 1000) -> None:
    """All of one length, so that a row holds one and rows keep the order of the stream."""
    with ShardWriter(directory, fingerprint=processor.image_tokenizer.fingerprint(), max_records=max_records) as writer:
        for number in range(DOCUMENTS):
            writer.write(document(number, processor))


def document(number: int, processor) -> InterleavedDocument:
    """One to five dots to learn, the others of six in the prompt, and a picture whose first code is the number."""
    codes = np.zeros(processor.vocabulary.image_length, dtype=np.int64)
    codes[0] = number
    picture = ImageSegment(draw_scene(SCENES[0]), trainable=True, origin="generated", codes_N=codes)
    learnt = 1 + number % 5
    segments = (TextSegment("." * (6 - learnt)), TextSegment("." * learnt, trainable=True), picture)
    return InterleavedDocument(segments, f"{number}", {"kind": "interleaved"})


def write_forms(folder: Path) -> None:
    """The same kind of record as five kinds of people have it, converted."""
    src, names = folder / "src", {form: [f"record {form} {n}" for n in range(count)] for form, count in FORMS.items()}
    for form in ("jsonl", "chat"):
        put(src / form / "a.png", encoded())
    put_lines(src / "jsonl" / "a.jsonl", *({"segments": [{"text": t}, {"image": "a.png"}]} for t in names["jsonl"]))
    put_lines(
        src / "chat" / "a.jsonl",
        *({"image": "a.png", "conversations": [
            {"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}
        ]} for text in names["chat"]),
    )  # fmt: skip
    for number, text in enumerate(names["imagefolder"]):
        put(src / "imagefolder" / f"{number}.png", encoded())
        put(src / "imagefolder" / f"{number}.txt", text)
    members = {f"{n}.txt": text.encode() for n, text in enumerate(names["webdataset"])}
    put_tar(src / "webdataset" / "a.tar", dict(sorted((members | {f"{n}.png": encoded() for n in range(7)}).items())))
    for number, text in enumerate(names["markdown"]):
        put(src / "markdown" / f"{number}.md", f"{text}\n\n![a kite](a.png)\n")
    put(src / "markdown" / "a.png", encoded())
    for form in FORMS:
        convert(open_source(form), src / form, folder / form, heldout_share=0)


def document_of(vocabulary, ids_T: torch.Tensor) -> int:
    return int(ids_T[ids_T.tolist().index(vocabulary.controls.boi) + 1]) - vocabulary.text_size


if __name__ == "__main__":
    play(sys.argv[1], Path(sys.argv[2]))
    PartialState().destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads, met by the interpreter's own end, abort the process now and then
