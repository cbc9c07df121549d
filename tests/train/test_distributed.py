"""Two processes do what one does; processes that are killed lose nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from limner.models.checkpoints.folder import load, save
from limner.train.objective.losses import NORMALISATIONS
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.worlds.picture_stories.scenes import SCENES

from .runs import brief
from .two_ranks import (
    BUFFERED,
    DOCUMENTS,
    FORMS,
    LAYOUTS,
    SAVING,
    losses,
    parameters,
    refilled,
    step,
    whole_epoch,
    write_documents,
    write_forms,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm_grpo.sh"


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
    write_forms(folder / "forms")
    finish("together", folder, processes=2)
    return folder


def start(part: str, root: Path, processes: int = 1) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.train.two_ranks", part, str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = (root / f"{part}.log").open("w")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)


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


def test_five_sources_two_ranks_and_two_workers_read_every_record_once_an_epoch(together):
    half = sum(FORMS.values()) // 2
    seen = [(together / f"five-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert all(len(one) > half for one in seen)
    assert sorted(seen[0][:half] + seen[1][:half]) == sorted(
        f"{f} {n}" for f, count in FORMS.items() for n in range(count)
    )


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
    values = brief(Path("run"), **BUFFERED, **SAVING, max_completion_length=48, num_generations=8, learning_rate=1e-2)
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
