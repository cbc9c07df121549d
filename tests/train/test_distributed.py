"""Two processes, and processes that are killed. This file is also the program that those processes run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from limner.data.prompts import pack_prompt
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.pictures.contract import VQImageTokenizer
from limner.rewards.base import RewardOutput
from limner.rewards.hybrid import HybridReward
from limner.train import warmup
from limner.train.before.preflight import run_checks
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.objective.losses import NORMALISATIONS
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.train.trainer import GRPOConfig, InterleavedGRPOTrainer
from limner.train.warmup import WarmupConfig, WarmupTrainer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story_prompt

pytestmark = pytest.mark.slow

DOCUMENTS = 24
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_grpo.sh"


class Illustrated:
    """An exact reward that varies among the answers of an untrained model."""

    name = "illustrated"

    def __call__(self, completions):
        outcome = [min(1.0, len(completion.answer.images) / 3) for completion in completions]
        segments = [[self.of(segment) for segment in completion.answer.segments] for completion in completions]
        return RewardOutput(outcome, segments)

    @staticmethod
    def of(segment) -> float:
        return len(segment.text) % 5 / 4 if isinstance(segment, TextSegment) else float(segment.codes_N.sum() % 7) / 6


# ---- what the processes do ----


def common(directory: Path, **changes) -> dict:
    values = {
        "output_dir": str(directory),
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
    }
    return {**values, **changes}


def warm(root: Path, directory: Path, data="data", normalisation="token", **changes) -> WarmupTrainer:
    args = TrainingArguments(
        **common(directory, **{"per_device_train_batch_size": 2, "learning_rate": 1e-2, **changes})
    )
    policy = load(root / "start")
    length = len(policy.processor.encode(document(0, policy.processor)))
    config = WarmupConfig(data=str(root / data), pack_length=length, heldout_batches=0, normalisation=normalisation)
    return warmup.run(config, args, policy)


def grpo(
    root: Path, directory: Path, normalisation="modality-balanced", resume=None, **changes
) -> InterleavedGRPOTrainer:
    values = {"max_completion_length": 48, "num_generations": 8, "learning_rate": 1e-2, **changes}
    args = GRPOConfig(**common(directory, **values))
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
    args = GRPOConfig(**common(root / "run", **values, gradient_accumulation_steps=2, steps_per_generation=2))
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
    args = GRPOConfig(**common(root / "run", **values, optim="sgd", learning_rate=0.5))
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


SAVING = {"save_strategy": "steps", "save_steps": 1}
LAYOUTS = {"at-once": (4, 1), "accumulated": (2, 2)}
"""Rollouts a device and step, steps accumulated: two processes make eight rollouts of either."""


def play(part: str, root: Path) -> None:
    rank = int(os.environ.get("RANK", 0))
    if part == "together":
        for data in ("one-shard", "two-shards"):
            read_and_tell(root, data, rank)
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


def read_and_tell(root: Path, data: str, rank: int) -> None:
    """A warm-up of two epochs that writes down which documents it sees."""
    original = WarmupTrainer.compute_loss

    def compute_loss(self, model, inputs, *rest, **options):
        with (root / f"{data}-{rank}.txt").open("a") as file:
            for ids_T in inputs["token_batch"].ids_BT:
                file.write(f"{document_of(self.policy.vocabulary, ids_T)}\n")
        return original(self, model, inputs, *rest, **options)

    WarmupTrainer.compute_loss = compute_loss
    warm(root, root / f"run-{data}", data, max_steps=DOCUMENTS // 2)
    WarmupTrainer.compute_loss = original


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


def document_of(vocabulary, ids_T: torch.Tensor) -> int:
    return int(ids_T[ids_T.tolist().index(vocabulary.controls.boi) + 1]) - vocabulary.text_size


# ---- tests ----


def prepared(folder: Path, policy) -> Path:
    save(policy, folder / "start")
    write_documents(folder / "data", policy.processor)
    return folder


@pytest.fixture
def root(make_policy, tmp_path) -> Path:
    return prepared(tmp_path, make_policy(0))


@pytest.fixture(scope="module")
def together(make_policy, processor, tmp_path_factory) -> Path:
    """What two ranks leave that do in one launch what one process is compared with."""
    folder = prepared(tmp_path_factory.mktemp("together"), make_policy(0))
    write_documents(folder / "one-shard", processor)
    write_documents(folder / "two-shards", processor, max_records=DOCUMENTS // 2)
    finish("together", folder, processes=2)
    return folder


def start(part: str, root: Path, processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, part, str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = (root / f"{part}.log").open("w")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def finish(part: str, root: Path, processes: int = 1) -> None:
    process = start(part, root, processes)
    try:
        assert process.wait(timeout=400) == 0, (root / f"{part}.log").read_text()[-4000:]
    finally:
        process.kill()


def kill_in_the_middle_of_a_save(part: str, root: Path, processes: int = 1) -> None:
    process, marker = start(part, root, processes), root / "marker"
    try:
        deadline = time.monotonic() + 300
        while not marker.exists() or not marker.read_text():
            assert process.poll() is None and time.monotonic() < deadline, (root / f"{part}.log").read_text()[-4000:]
            time.sleep(0.1)
        os.kill(int(marker.read_text()), signal.SIGKILL)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()


def test_two_ranks_see_each_document_once_an_epoch(together):
    """A Trainer would shard the loader again, and lose half of what each rank reads."""
    for data in ("one-shard", "two-shards"):
        first, second = ((together / f"{data}-{rank}.txt").read_text().split() for rank in (0, 1))
        assert len(first) == len(second) == DOCUMENTS  # two epochs of a half each
        half = DOCUMENTS // 2
        everything = sorted(map(str, range(DOCUMENTS)))
        assert sorted(first[:half] + second[:half]) == sorted(first[half:] + second[half:]) == everything
        assert first[:half] != first[half:]  # shuffled anew


def test_a_warmup_step_of_two_ranks_is_the_step_of_one(together):
    """A step on a whole epoch, half of it on each rank, where the halves have unlike shares of text."""
    for normalisation in NORMALISATIONS:
        alone = whole_epoch(together, together / f"alone-{normalisation}", normalisation, DOCUMENTS)
        assert (parameters(alone) - parameters_of(together / "start")).abs().max() > 1e-3
        for rank in (0, 1):
            found, loss = torch.load(together / f"warmup-{normalisation}-{rank}.pt")
            assert torch.allclose(found, parameters(alone), atol=1e-6)
            assert rank or loss == pytest.approx(losses(alone), abs=2e-4)


def test_a_grpo_step_of_two_ranks_is_the_step_of_one(together):
    """One group of eight rollouts over two ranks, at once or accumulated, against one process with all eight."""
    before = parameters_of(together / "start")
    for normalisation in NORMALISATIONS:
        alone = step(together, together / "alone", normalisation, 8, 1)
        assert (parameters(alone) - before).abs().max() > 1e-3
        for layout in LAYOUTS:
            for rank in (0, 1):
                found, loss = torch.load(together / f"grpo-{normalisation}-{layout}-{rank}.pt")
                assert torch.allclose(found, parameters(alone), atol=1e-5), (normalisation, layout, rank)
                assert rank or loss == pytest.approx(losses(alone), abs=2e-4)


def test_what_one_process_sees_alone_counts_for_all(together):
    """A dead group is none of the gradients' business; a gap on the second process is in the log of the first."""
    (checks, gap), (others, _) = (json.loads((together / f"unlike-{rank}.json").read_text()) for rank in (0, 1))
    assert checks == others and gap == pytest.approx(0.5, abs=1e-4)
    assert {name for name, passed in checks if not passed} <= {"documents close"}
    assert {"gradient of the image head", "replayed log-probs, image", "reward all together"} <= {n for n, _ in checks}


def test_dead_groups_are_replaced_by_the_same_prompts_on_two_ranks_as_on_one(together):
    alone, prompts = refilled(together, 16)
    found = [torch.load(together / f"refilled-{rank}.pt") for rank in (0, 1)]
    assert found[0][1] + found[1][1] == prompts and len({*prompts}) > 1
    assert (alone - parameters_of(together / "start")).abs().max() > 1e-3
    assert all(torch.allclose(weights, alone, atol=1e-6) for weights, _ in found)


def parameters_of(directory: Path) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in load(directory).model.parameters()])


@pytest.mark.parametrize(("kind", "processes"), [("warmup", 1), ("grpo", 2)])
def test_a_run_killed_while_it_saves_resumes_from_the_checkpoint_before(kind, processes, root):
    killed = root / "killed"
    kill_in_the_middle_of_a_save(f"{kind}-killed", root, processes)
    assert list(killed.glob("_limner-*/new/checkpoint-2"))  # it was killed inside
    assert [path.name for path in checkpoints(killed)] == ["checkpoint-1"]
    assert resume_point(killed, "last") == str(killed / "checkpoint-1")
    load(killed / "checkpoint-1")
    finish(f"{kind}-resumed", root, processes)
    for rank in range(processes):
        resumed, straight = torch.load(root / f"resumed-{rank}.pt")
        assert torch.equal(resumed, straight) and not torch.equal(straight, parameters_of(root / "start"))
    assert not list(killed.glob("[._]*"))
    assert len(checkpoints(killed)) == (3 if kind == "warmup" else 4)


SLURM = {
    "scontrol": "echo localhost; echo another",
    "srun": """
while [[ $1 == --* ]]; do shift; done
for node in 0 1; do "$@" > "node-$node.log" 2>&1 & nodes[node]=$!; done
wait "${nodes[0]}" && wait "${nodes[1]}" """,
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
}
"""Stand-ins: two nodes are two torchruns on this machine, each with a process that is the first of its node."""


def test_the_slurm_script_trains_on_two_nodes(root):
    """A group of rollouts over both; what is written, is written once."""
    (root / "bin").mkdir()
    for name, script in SLURM.items():
        (root / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (root / "bin" / name).chmod(0o755)
    outlines = [json.dumps({"outline": [scene.words for scene in SCENES[i : i + 2]]}) + "\n" for i in range(0, 16, 2)]
    (root / "prompts.jsonl").write_text("".join(outlines))
    values = common(Path("run"), **BUFFERED, **SAVING, max_completion_length=48, num_generations=8, learning_rate=1e-2)
    values |= {"model": "start", "prompts": "prompts.jsonl", "preflight": False}
    bonus = {"text": 0.1, "image": 0.1}  # what moves a model whose stories all score 0
    (root / "run.yaml").write_text(json.dumps(values | {"algorithm": {"entropy_bonus": bonus}}))
    job = {"SUBMIT_DIR": root, "JOB_ID": os.getpid(), "JOB_NODELIST": "nodes", "JOB_NUM_NODES": 2, "GPUS_ON_NODE": 1}
    settings = {f"SLURM_{name}": str(value) for name, value in job.items()}
    settings |= {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["bash", str(SCRIPT), "--config", "run.yaml", "--max_steps", "2"]
    found = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=400)
    logs = [(root / f"node-{node}.log").read_text() for node in (0, 1)]
    assert found.returncode == 0, found.stderr + "".join(log[-2000:] for log in logs)
    assert sum(log.count("wrote run/model") for log in logs) == 1
    assert [path.name for path in checkpoints(root / "run")] == ["checkpoint-1", "checkpoint-2"]
    assert not list(root.glob("run/[._]*"))
    for rank in (0, 1):
        assert torch.load(root / "run" / "checkpoint-1" / f"rollouts_{rank}.pth")["ranks"] == 2
    assert (parameters_of(root / "run" / "model") - parameters_of(root / "start")).abs().max() > 1e-3


if __name__ == "__main__":
    play(sys.argv[1], Path(sys.argv[2]))
    PartialState().destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads, met by the interpreter's own end, abort the process now and then
