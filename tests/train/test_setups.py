"""Every shipped way to launch on two processes of the CPU: DDP, ZeRO-2, ZeRO-3, FSDP2, each also with LoRA.

This file is also the program that `accelerate launch --config_file configs/accelerate/NAME.yaml` runs.
"""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from limner.configs.whole import Staging
from limner.data.prompts import pack_prompt
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.tokens.sequence import collate
from limner.train import warmup
from limner.train.before.preflight import Preflight
from limner.train.objective.algorithm import AlgorithmConfig, PerModality
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.train.trainer import GRPOConfig, InterleavedGRPOTrainer
from limner.train.warmup import WarmupConfig
from limner.worlds.picture_stories.scenes import SCENES, story, story_prompt

from .launched import DOCUMENTS, LORA, Illustrated, common, make_do_without_gpus, moved

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
SETUPS = ("ddp", "zero2", "zero3", "fsdp2")
SHARDED = ("zero3", "fsdp2")
VARIANTS = {
    "token": {},
    "sequence": {"micro_batch_tokens": 300},
    "segment": {"score_chunk": 11},
    "modality-balanced": {"micro_batch_tokens": 1},  # and two micro-batches a step, and activation checkpointing
}
"""Normalisation -> further settings of the algorithm; one process does without them."""
UNTIED = ("segment", "modality-balanced")
"""Normalisations that are tried on a model whose head is a weight of its own, with guidance."""
STALLS = {
    "zero3": (0, Staging, "publish", set()),
    "fsdp2": (1, InterleavedGRPOTrainer, "_save_rng_state", {"rng_state_1.pth", "rollouts_1.pth"}),
}
"""Set-up -> where a save never ends (rank, function), and what is unwritten then: nothing, and the first process would
rename; or a part of the other one, which the first waits for."""


class Gathers(TorchDispatchMode):
    """Counts the collective gathers."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, torch.distributed.tensor.DTensor) for kind in types):
            return NotImplemented
        self.count += "c10d" in func.namespace and "gather" in func.__name__
        return func(*args, **(kwargs or {}))


# ---- what the processes do ----


def warmed_up(root: Path, directory: str) -> list[str]:
    """What is said of one step on a whole epoch, a document a row, over however many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    batch = len(DOCUMENTS) // processes
    args = TrainingArguments(**common(root / directory, processes), max_steps=1, per_device_train_batch_size=batch)
    policy, said = load(root / "start"), []
    length = max(len(policy.processor.encode(document)) for document in DOCUMENTS)
    config = WarmupConfig(data=str(root / "data"), pack_length=length)
    warmup.run(config, args, policy, say=said.append)
    return said


def trainer_of(root: Path, directory: str, normalisation="token", setting=None, adapted=False, **changes):
    """Two steps on one group of eight rollouts, over however many processes there are."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    accumulation = 2 if setting and normalisation == "modality-balanced" else 1
    values = {
        **common(root / directory, processes),
        "max_steps": 2,
        "num_generations": 8,
        "num_iterations": 2,
        "per_device_train_batch_size": 8 // processes // accumulation,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation,
        "activation_checkpointing": accumulation > 1,
        "max_completion_length": 160,
    }
    args = GRPOConfig(**{**values, **changes})
    if args.deepspeed_plugin is not None:  # offloaded state: DeepSpeed's own Adam takes minutes to compile
        args.deepspeed_plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False
    beta = PerModality(0.1, 0.2)
    guidance = 1.5 if normalisation in UNTIED else 1.0
    algorithm = AlgorithmConfig(
        normalisation=normalisation, process_weight=0.5, beta=beta, guidance=guidance, **(setting or {})
    )
    prompts = [pack_prompt(story_prompt(SCENES[i : i + 2])) for i in range(0, 16, 2)]
    dataset = Dataset.from_dict({"prompt": prompts})
    policy = load(root / ("untied" if normalisation in UNTIED else "start"))
    adapter = LORA.adapter(policy.model) if adapted else None
    return InterleavedGRPOTrainer(policy, Illustrated(), algorithm, args, dataset, peft_config=adapter)


def trained(*arguments, **options) -> dict:
    return outcome(train(*arguments, **options))


def train(root, directory, *arguments, resume=None, preflight=False, **options) -> InterleavedGRPOTrainer:
    trainer = trainer_of(root, directory, *arguments, **options)
    if preflight:
        trainer.add_callback(Preflight(trainer))
    trainer.train(resume_from_checkpoint=resume_point(root / directory, resume))
    return trainer


def outcome(trainer) -> dict:
    policy = trainer.whole_policy()
    weights = {name: parameter.detach().cpu().clone() for name, parameter in policy.model.named_parameters()}
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {"history": history, "weights": weights, "scores": scores(policy)}


@torch.no_grad()
def scores(policy) -> torch.Tensor:
    batch = collate([policy.processor.encode_all([story(SCENES[:2]), story(SCENES[5:8])])], policy.vocabulary)
    return policy.log_probs(policy.model.eval(), batch)[0]


def gathers_of_sampling(trainer, tokens: int) -> int:
    trainer.args.max_completion_length = tokens
    with Gathers() as gathers:
        trainer.sample([story_prompt(SCENES[:2])] * 2, seed=0, numbers=range(2))
    return gathers.count


ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1}


def stall_in_second_save(root: Path, setup: str) -> None:
    rank, owner, name, _ = STALLS[setup]
    original, calls = getattr(owner, name), []

    def stalling(*arguments):
        calls.append(arguments)
        if len(calls) == 2 and os.environ["RANK"] == str(rank):
            (root / "stalled").touch()
            time.sleep(600)
        return original(*arguments)

    setattr(owner, name, stalling)


def be_killed(root: Path, setup: str) -> None:
    (root / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    stall_in_second_save(root, setup)
    train(root, "killed", **ADAM)


def play(root: Path, setup: str) -> None:
    results = {}
    for normalisation, setting in VARIANTS.items():
        trainer = train(root, "run", normalisation, setting, preflight=normalisation == "token")
        results[normalisation] = outcome(trainer)
    results["gathers"] = [gathers_of_sampling(trainer, tokens) for tokens in (8, 64)]
    for name, adapted in (("whole", False), ("lora", True)):
        trainer = train(root, name, adapted=adapted, preflight=adapted, **ADAM)
        results[name] = outcome(trainer)
        trainer.save_policy(root / name / "model")
        drop_last_checkpoint(root / name)
        results[f"{name}-resumed"] = trained(root, name, adapted=adapted, resume="last", **ADAM)
    results["bf16"] = trained(root, "bf16", bf16=True)
    results["warmup"] = warmed_up(root, "warmup")
    for name, adapted in (("moved", False), ("moved-lora", True)):
        results[name] = moved(root, name, "in-16-bits", adapted, bf16=True)
    if setup in STALLS:
        results["left"] = files_in(root / "killed")
        results["killed"] = trained(root, "killed", resume="last", **ADAM)
    if setup.startswith("zero"):
        os.environ["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu"
        trainer = train(root, "offload", **{**ADAM, "save_strategy": "no"})
        assert trainer.deepspeed.zero_offload_optimizer().device == "cpu"
        results["offload"] = outcome(trainer)
    torch.save(results, root / f"results-{os.environ['RANK']}.pt")


def files_in(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def drop_last_checkpoint(directory: Path) -> None:
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        checkpoints(directory)[-1].rename(directory / "dropped")
    state.wait_for_everyone()


# ---- tests ----


@pytest.fixture(scope="module")
def root(make_policy, tmp_path_factory) -> Path:
    policy = make_policy(0)
    with torch.no_grad():  # answers short enough to end
        policy.model.get_input_embeddings().weight[policy.vocabulary.controls.eos, 0] -= 0.25
    root = tmp_path_factory.mktemp("setups")
    save(policy, root / "start")
    in_16_bits = load(root / "start", dtype=torch.bfloat16)
    save(in_16_bits, root / "in-16-bits")
    in_16_bits.model.float()
    save(in_16_bits, root / "in-32-bits")
    config = deepcopy(policy.model.config)
    config.tie_word_embeddings = False
    untied = type(policy).create(config, policy.processor)
    untied.model.load_state_dict(policy.model.state_dict())
    save(untied, root / "untied")
    with ShardWriter(root / "data") as writer:
        for split in ("train", "heldout"):
            for document in DOCUMENTS:
                writer.write(document, split)
    return root


@pytest.fixture(scope="module")
def alone(root) -> dict:
    """One process with all the data."""
    results = {name: trained(root, "alone", name) for name in VARIANTS}
    for name, adapted in (("whole", False), ("lora", True)):
        results[name] = trained(root, f"alone-{name}", adapted=adapted, **ADAM)
    for name, adapted in (("moved", False), ("moved-lora", True)):
        results[name] = moved(root, f"alone-{name}", "in-32-bits", adapted)
    return {**results, "warmup": warmed_up(root, "alone-warmup")}


def start(part: str, name: str, directory: Path) -> subprocess.Popen:
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    command = [
        sys.executable,
        *launcher,
        "--num_processes=2",
        "--main_process_port=0",
        "--module",
        "tests.train.test_setups",
        part,
        name,
        str(directory),
    ]
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    settings |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    log = (directory / f"{part}.log").open("w")
    env = {**os.environ, **settings}
    return subprocess.Popen(command, env=env, cwd=CONFIGS.parents[1], stdout=log, stderr=subprocess.STDOUT)


def kill_both_in_the_second_save(name: str, directory: Path) -> None:
    process = start("be_killed", name, directory)
    last_of_the_first = "_limner-*/new/checkpoint-2/trainer_state.json"
    try:
        deadline = time.monotonic() + 300
        while not ((directory / "stalled").exists() and list((directory / "killed").glob(last_of_the_first))):
            waits = process.poll() is None and time.monotonic() < deadline
            assert waits, (directory / "be_killed.log").read_text()[-6000:]
            time.sleep(0.1)
        time.sleep(0.5)  # long enough for a process that does not wait to go on
        for rank in (0, 1):
            os.kill(int((directory / f"pid-{rank}").read_text()), signal.SIGKILL)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()


@pytest.fixture(scope="module", params=SETUPS)
def setup(request, root, tmp_path_factory):
    """(name, results of the main process, folder) of a launch of two processes."""
    name = request.param
    if name.startswith("zero") and not importlib.util.find_spec("deepspeed"):
        pytest.skip("deepspeed is not installed: pip install 'limner[deepspeed]'")
    directory = tmp_path_factory.mktemp(name)
    for shared in ("start", "untied", "in-16-bits", "data"):
        (directory / shared).symlink_to(root / shared)
    if name in STALLS:
        kill_both_in_the_second_save(name, directory)
    process = start("play", name, directory)
    try:
        assert process.wait(timeout=580) == 0, (directory / "play.log").read_text()[-6000:]
    finally:
        process.kill()
    return name, torch.load(directory / "results-0.pt"), directory


def same_course(found: dict, expected: dict) -> None:
    assert len(found["history"]) == len(expected["history"]) == 2
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        for name in ("loss", "grad_norm", *(f"{kind}/{m}" for kind in ("kl", "ratio") for m in ("text", "image"))):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    assert found["history"][1]["kl/image"] > 1e-6


@pytest.mark.timeout(1200)
def test_two_processes_train_as_one(setup, alone):
    """Micro-batches cut by tokens, scores in chunks, accumulated steps and all."""
    _, results, _ = setup
    for normalisation in VARIANTS:
        found, expected = results[normalisation], alone[normalisation]
        same_course(found, expected)
        for name, weight in expected["weights"].items():
            assert torch.allclose(found["weights"][name], weight, atol=1e-5), (normalisation, name)


def test_sampling_gathers_the_model_once(setup):
    name, results, _ = setup
    short, long = results["gathers"]
    assert short == long
    parameters = len(results["modality-balanced"]["weights"])  # the run that samples
    assert 0 < short <= parameters if name in SHARDED else short == 0


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_a_resumed_run_is_the_run(setup, kind):
    _, results, directory = setup
    straight, resumed = results[kind], results[f"{kind}-resumed"]
    assert [path.name for path in checkpoints(directory / kind)] == ["checkpoint-1", "checkpoint-2"]
    for name, weight in straight["weights"].items():
        assert torch.equal(resumed["weights"][name], weight), name
    assert resumed["history"][-1]["loss"] == straight["history"][-1]["loss"]


def test_a_run_killed_in_a_sharded_save_goes_on_from_the_checkpoint_before(setup):
    name, results, directory = setup
    if name not in STALLS:
        pytest.skip("test_distributed.py kills one that is not sharded")
    complete = files_in(directory / "whole" / "checkpoint-2")
    left = {re.sub("^_limner-[0-9a-f-]+", "STAGING", path) for path in results["left"]}
    staged = {path for path in complete if f"STAGING/new/checkpoint-2/{path}" in left}
    assert complete - staged == STALLS[name][-1]  # it was killed inside
    assert {path.split("/")[0] for path in left} == {"STAGING", "checkpoint-1"}
    for parameter, weight in results["whole"]["weights"].items():
        assert torch.equal(results["killed"]["weights"][parameter], weight), parameter
    assert results["killed"]["history"][-1]["loss"] == results["whole"]["history"][-1]["loss"]
    assert {path.name for path in (directory / "killed").iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_an_optimizer_kept_in_host_memory_takes_the_same_steps(setup):
    name, results, _ = setup
    if not name.startswith("zero"):
        pytest.skip("a setting of DeepSpeed")
    for parameter, weight in results["whole"]["weights"].items():
        assert torch.allclose(results["offload"]["weights"][parameter], weight, atol=1e-5), parameter


def test_a_warmup_trains_as_in_one_process(setup, alone, root):
    _, results, directory = setup
    folders = directory / "warmup" / "model", root / "alone-warmup" / "model", root / "start"
    found, expected, before = (dict(load(folder).model.named_parameters()) for folder in folders)
    assert max((expected[name] - before[name]).abs().max() for name in expected) > 1e-3
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, atol=1e-5), name
    assert results["warmup"] == alone["warmup"] and len(alone["warmup"]) == 2  # the held-out loss of both modalities


def test_the_model_of_a_run_is_one_ordinary_checkpoint(setup):
    _, results, directory = setup
    policy = load(directory / "whole" / "model")
    assert torch.equal(scores(policy), results["whole"]["scores"])
    merged = load(directory / "lora" / "model")
    assert torch.allclose(scores(merged), results["lora"]["scores"], atol=1e-4)
    assert not torch.allclose(scores(merged), scores(load(directory / "start")), atol=1e-2)


def test_an_adapter_trains_as_in_one_process_and_leaves_the_model_alone(setup, alone):
    _, results, directory = setup
    same_course(results["lora"], alone["lora"])
    assert torch.allclose(results["lora"]["scores"], alone["lora"]["scores"], atol=1e-3)
    start = dict(load(directory / "start").model.named_parameters())
    weights = {name.replace(".base_layer", ""): weight for name, weight in results["lora"]["weights"].items()}
    assert sum("lora_" in name for name in weights) > 0
    for name, weight in start.items():
        assert torch.equal(weights[name], weight), name


def test_in_bfloat16_the_sampled_policy_is_the_scored_one(setup):
    _, results, _ = setup
    in_16_bits, in_32_bits = (results[name]["history"][0] for name in ("bf16", "token"))
    for name in ("text", "image"):
        assert in_16_bits[f"replay_gap/{name}"] < 0.5
        assert in_16_bits[f"entropy/{name}"] != in_32_bits[f"entropy/{name}"]  # it was in bfloat16


@pytest.mark.parametrize("kind", ["moved", "moved-lora"])
def test_a_checkpoint_in_bfloat16_trains_as_in_float32(setup, alone, kind):
    """Six steps of 1e-6 change what they would change, and in the same direction; the model keeps its dtype."""
    name, results, directory = setup
    share = (results[kind] != 0).double().mean().item()
    cosine = torch.cosine_similarity(results[kind], alone[kind], 0).item()
    print(f"{name}, {kind}: share of weights changed {share:.4f}, cosine against fp32 {cosine:.3f}")
    assert share > 0.99 and cosine > 0.9
    written = load(directory / kind / "model").model
    assert {weight.dtype for weight in written.parameters()} == {torch.bfloat16}


if __name__ == "__main__":
    make_do_without_gpus()
    {"play": play, "be_killed": be_killed}[sys.argv[1]](Path(sys.argv[3]), sys.argv[2])
    PartialState().destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads, met by the interpreter's own end, abort the process now and then
