"""Extended GRPO on a tiny untrained policy: the seam with TRL, exact steps, resume, checkpoints."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from limner.configs.errors import InputError
from limner.data.mixture import SourceConfig
from limner.data.shards import ShardWriter
from limner.models.checkpoints.folder import load, save
from limner.models.documents.document import ImageSegment, InterleavedDocument
from limner.models.tokens.sequence import TokenBatch
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.train.grpo import RunConfig, run
from limner.train.objective.advantages import process_advantages, segment_advantages
from limner.train.objective.algorithm import AlgorithmConfig, PerModality, ReplayConfig, Schedule
from limner.train.objective.losses import NORMALISATIONS, Counts, Tokens, token_weights
from limner.train.scale.run_folder import checkpoints, resume_point
from limner.train.trainer import BATCH_FIELDS, GRPOConfig, GRPOTrainer, InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import CLEAN, warmup_documents

from ..rewards.exact import STORIES
from .runs import PROMPTS, Flat, Illustrated, dataset, logs, parameters, settings, trained

# ---- the whole ----


def test_two_steps_with_exact_rewards_change_the_model(make_policy, tmp_path):
    policy = make_policy(0)
    before = parameters(policy)
    trainer = trained(policy, settings(tmp_path, max_steps=2), process_weight=0.5)
    assert not torch.equal(parameters(policy), before)
    history = logs(trainer)
    assert len(history) == 2
    for entry in history:
        assert entry["reward_std"] > 0 and entry["dead_groups"] < 1
        assert entry["rewards/pictures"] == pytest.approx(entry["reward"])
        assert entry["completions/tokens"] > 10 and entry["completions/images"] > 0
        for name in ("text", "image"):
            # The sampler's log-probs are those of the training forward.
            assert entry[f"replay_gap/{name}"] < 1e-4
            assert entry[f"ratio/{name}"] == pytest.approx(1, abs=1e-4)
            assert entry[f"entropy/{name}"] > 0 and entry[f"advantage/{name}"] > 0


def test_the_rewards_of_the_embedded_world_are_reported_by_name(make_policy, tmp_path):
    trainer = trained(make_policy(0), settings(tmp_path), build_reward(RewardSettings(STORIES)))
    names = [f"rewards/{name.replace('/', '_')}" for name in STORIES]
    assert names[1] == "rewards/picture_stories_text_plan"
    assert all(0 <= logs(trainer)[0][name] <= 1 for name in names)


def test_a_run_writes_its_model_and_settings(make_policy, tmp_path):
    policy = make_policy(0)
    save(policy, tmp_path / "start")
    config = RunConfig(model=str(tmp_path / "start"), preflight=False)
    trainer = run(config, settings(tmp_path / "run"), prompts=PROMPTS)
    assert torch.equal(parameters(load(tmp_path / "run" / "model")), parameters(trainer.policy))
    assert "process_weight: 0.0" in (tmp_path / "run" / "config.yaml").read_text()


# ---- one step, exactly ----


def rows_of(trainer) -> dict[str, torch.Tensor]:
    """The rollouts of the last step, whatever micro-batches it had."""
    parts = trainer._buffered_inputs
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("objective", ["grpo", "rejection"])
def test_a_step_is_the_gradient_of_the_weighted_log_probs(objective, normalisation, make_policy, tmp_path):
    """At ratio 1 the clipped loss has the gradient of - sum w A logp; in rejection A is 1 for the best rows, else 0."""
    policy = make_policy(0)
    args = settings(tmp_path, optim="sgd", learning_rate=0.5, max_grad_norm=0)
    trainer = trained(policy, args, objective=objective, normalisation=normalisation, process_weight=0.5)
    rows = rows_of(trainer)
    mask, advantages = rows["trainable_BT"], rows["advantages_BT"]
    if objective == "rejection":
        assert (advantages > 0).all(1).sum() == 2 and advantages.any(1).sum() == 2  # one of each group
        mask = mask & (advantages > 0)

    start = make_policy(0)
    image = rows["ids_BT"] >= start.vocabulary.text_size
    tokens = Tokens(mask, image, rows["sequence_BT"], rows["segment_BT"])
    weights = token_weights(tokens, Counts.of(tokens), normalisation)
    batch = TokenBatch(**{name: rows[name] for name in BATCH_FIELDS})
    logp, _ = start.log_probs(start.model, batch, max_images=8)
    (-(weights * advantages * logp).sum()).backward()
    with torch.no_grad():
        for parameter in start.model.parameters():
            parameter -= 0.5 * parameter.grad
    assert (parameters(start) - parameters(make_policy(0))).abs().max() > 1e-3
    assert torch.allclose(parameters(policy), parameters(start), atol=1e-6)


def test_process_rewards_reach_the_tokens_of_their_segments(make_policy, tmp_path):
    policy = make_policy(0)
    algorithm = {"outcome_weight": 0.0, "process_weight": 1.0, "process_discount": 0.5, "process_miscount": 0.0}
    rows = rows_of(trained(policy, settings(tmp_path, max_steps=1), **algorithm))
    (answer,), groups = policy.vocabulary.answer, defaultdict(list)
    for row, ids_T in enumerate(rows["ids_BT"].tolist()):
        start = ids_T.index(answer) + 1
        groups[tuple(ids_T[:start])].append((row, start))
    assert [len(members) for members in groups.values()] == [4, 4]
    for members in groups.values():
        readings = [
            policy.processor.read(completion_of(rows["ids_BT"][row], start, policy.vocabulary.controls.pad))
            for row, start in members
        ]
        scores = [[Illustrated.of(segment) for segment in reading.document.segments] for reading in readings]
        width = max(map(len, scores))
        rewards = torch.tensor([row + [float("nan")] * (width - len(row)) for row in scores])
        kinds = [[isinstance(segment, ImageSegment) for segment in reading.document.segments] for reading in readings]
        kind = torch.tensor([[int(k) for k in row] + [-1] * (width - len(row)) for row in kinds])
        compared = segment_advantages(rewards, kind, 4)
        for (row, start), reading, normalised in zip(members, readings, compared, strict=True):
            expected = process_advantages(normalised[None], reading.segment_C[None], discount=0.5)[0]
            found = rows["advantages_BT"][row]
            assert torch.allclose(found[start : start + len(expected)], expected, atol=1e-5)
            assert not found[:start].any() and not found[start + len(expected) :].any()


def completion_of(ids_T, start, pad) -> list[int]:
    ids = ids_T[start:].tolist()
    return ids[: ids.index(pad)] if pad in ids else ids


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_accumulating_eight_rollouts_is_a_batch_of_eight(normalisation, make_policy, tmp_path):
    def after_one_step(batch, accumulation):
        policy = make_policy(0)
        args = settings(
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            steps_per_generation=accumulation,
            optim="sgd",
            learning_rate=0.5,
        )
        beta = PerModality(0.1, 0.2)
        return policy, trained(policy, args, normalisation=normalisation, process_weight=0.5, beta=beta)

    (whole, whole_trainer), (parts, parts_trainer) = after_one_step(8, 1), after_one_step(1, 8)
    for name in ("ids_BT", "advantages_BT"):  # the same rollouts; TRL shuffles them
        ours, theirs = (sorted(rows_of(trainer)[name].tolist()) for trainer in (whole_trainer, parts_trainer))
        assert ours == theirs
    assert (parameters(whole) - parameters(make_policy(0))).abs().max() > 1e-3
    assert torch.allclose(parameters(whole), parameters(parts), atol=1e-6)
    one, many = logs(whole_trainer)[0], logs(parts_trainer)[0]
    for name in ("loss", "reward", "ratio/image", "advantage/text", "entropy/text", "kl/image", "grad_norm"):
        assert one[name] == pytest.approx(many[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(
    "setting",
    [{"micro_batch_tokens": 150}, {"score_chunk": 11}, {"micro_batch_tokens": 1, "score_chunk": 3}],
    ids=["parts", "chunks", "a-row-at-a-time"],
)
def test_parts_and_chunks_are_the_whole(setting, make_policy, tmp_path):
    def after_one_step(name, **changes):
        policy = make_policy(0)
        args = settings(tmp_path / name, optim="sgd", learning_rate=0.5)
        algorithm = {"beta": PerModality(0.1, 0.2), "importance": "segment", "normalisation": "segment", **changes}
        algorithm |= {"epsilon": PerModality(0.1, 0.1), "epsilon_high": PerModality(0.1, 0.1)}
        return policy, logs(trained(policy, args, process_weight=0.5, guidance=1.5, **algorithm))[0]

    (whole, one), (parts, many) = after_one_step("whole"), after_one_step("parts", **setting)
    assert (parameters(whole) - parameters(make_policy(0))).abs().max() > 1e-3
    assert torch.allclose(parameters(whole), parameters(parts), atol=1e-6)
    for name in ("loss", "ratio/image", "entropy/text", "kl/image", "signal/text", "grad_norm"):
        assert one[name] == pytest.approx(many[name], rel=1e-4, abs=1e-6), name


def test_a_modality_of_weight_zero_is_left_alone(make_policy, tmp_path):
    policy = make_policy(0)
    history = logs(trained(policy, settings(tmp_path, optim="sgd"), modality_weight=PerModality(1.0, 0.0)))[0]
    assert history["signal/image"] == 0 < history["signal/text"]
    with pytest.raises(InputError, match=r"algorithm\.modality_weight"):
        trained(make_policy(0), settings(tmp_path), modality_weight=PerModality(0.0, 0.0))


def test_in_bfloat16_rollout_and_training_still_agree(make_policy, tmp_path):
    in_16_bits, in_32_bits = (logs(trained(make_policy(0), settings(tmp_path, bf16=b)))[0] for b in (True, False))
    for name in ("text", "image"):
        assert in_16_bits[f"replay_gap/{name}"] < 0.5  # on some processors it is no larger than in float32
        assert in_16_bits[f"ratio/{name}"] == pytest.approx(1, abs=0.02)
        assert in_16_bits[f"entropy/{name}"] != in_32_bits[f"entropy/{name}"]  # it was in bfloat16


@pytest.mark.parametrize("limit", [None, 40])
def test_the_gap_is_the_largest_of_all_micro_batches(make_policy, tmp_path, monkeypatch, limit):
    rows_of = InterleavedGRPOTrainer.rows_of

    def shifted(self, batch):
        rows = rows_of(self, batch)
        rows["old_logp_BT"][-1] += 0.5  # of the last micro-batch
        return rows

    monkeypatch.setattr(InterleavedGRPOTrainer, "rows_of", shifted)
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "steps_per_generation": 4}
    history = logs(trained(make_policy(0), settings(tmp_path, **batches), micro_batch_tokens=limit))[0]
    assert history["replay_gap/text"] == pytest.approx(0.5, abs=1e-4)


def test_rejection_makes_no_reference(make_policy, tmp_path):
    trainer = trained(make_policy(0), settings(tmp_path), objective="rejection", beta=PerModality(0.1, 0.1))
    assert trainer.reference is None and "kl/text" not in logs(trainer)[0]


def test_kl_is_to_the_policy_at_the_start(make_policy, tmp_path):
    policy = make_policy(0)
    trainer = trained(policy, settings(tmp_path, max_steps=3), beta=PerModality(0.01, 0.0))
    assert trainer.reference is not None
    assert torch.equal(parameters(trainer.reference), parameters(make_policy(0)))
    history = logs(trainer)
    for name in ("text", "image"):
        assert abs(history[0][f"kl/{name}"]) < 1e-6 < 1e-4 < history[2][f"kl/{name}"]


def test_groups_that_agree_teach_nothing_but_replay_does(make_policy, tmp_path):
    with ShardWriter(tmp_path / "data") as writer:
        for _, document in zip(range(12), warmup_documents("text_to_image", 0, CLEAN, frozenset()), strict=False):
            writer.write(document)
    start = parameters(make_policy(0))
    policy = make_policy(0)
    alone = trained(policy, settings(tmp_path / "alone", max_steps=2), Flat())
    assert torch.equal(parameters(policy), start) and logs(alone)[0]["dead_groups"] == 1
    replay = ReplayConfig([SourceConfig(str(tmp_path / "data"))], weight=0.5, rows=2, pack_length=128)
    history = logs(trained(policy, settings(tmp_path / "replay", max_steps=6), Flat(), replay=replay))
    assert history[-1]["replay/loss"] < history[0]["replay/loss"]
    assert history[0]["loss"] == pytest.approx(0.5 * history[0]["replay/loss"], rel=1e-3)


def test_rejection_learns_nothing_from_groups_that_agree(make_policy, tmp_path):
    policy = make_policy(0)
    trained(policy, settings(tmp_path), Flat(), objective="rejection")
    assert torch.equal(parameters(policy), parameters(make_policy(0)))


# ---- refusals ----


@pytest.mark.parametrize(
    ("arguments", "algorithm", "message"),
    [
        ({"beta": 0.04}, {}, "beta: extended GRPO does not read it"),
        ({"loss_type": "grpo"}, {}, "loss_type: extended GRPO does not read"),
        ({"scale_rewards": "none"}, {}, "scale_rewards: extended GRPO does not read"),
        ({"top_entropy_quantile": 0.2}, {}, "top_entropy_quantile: extended GRPO does not read"),
        ({"vllm_gpu_memory_utilization": 0.5}, {}, "vllm_gpu_memory_utilization: extended GRPO does not read"),
        ({"max_steps": 0}, {}, "max_steps: 0, and a run takes one at least"),
        ({"top_p": 0.9}, {}, "top_p, top_k, min_p: truncated sampling is refused"),
        ({"top_k": 50}, {}, "truncated sampling is refused"),
        ({"min_p": 0.1}, {}, "truncated sampling is refused"),
        ({"temperature": 0.0}, {}, "temperature: 0.0 leaves nothing to explore"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, {}, "multiple of gradient_accumulation_steps"),
        ({"steps_per_generation": 4}, {}, "prompts: 4, and one batch of rollouts takes 8"),
        ({}, {"score_chunk": 0}, "algorithm.score_chunk: 0 is no number of tokens"),
        ({}, {"beta": PerModality(0.1, -0.1)}, "algorithm.beta: negative"),
        ({}, {"importance": "word"}, "algorithm.importance: 'word' is none of token, segment, sequence"),
        ({}, {"importance": "sequence"}, "algorithm.epsilon.text: 0.2 never clips with importance sequence"),
        ({}, {"importance": "segment", "epsilon": PerModality(0.1, 0.1)}, "algorithm.epsilon_high.text: 0.2 never"),
        ({}, {"delta": PerModality(1.2, 3.0)}, "algorithm.delta.text: 1.2 must be above 1 . epsilon_high"),
        ({}, {"negative_weight": -0.5}, "algorithm.negative_weight: negative"),
        ({}, {"negative_weight": Schedule(1.0, 0.0, 2.0)}, "algorithm.negative_weight.over: 2.0 is no share"),
        ({}, {"spread_floor": 0.0}, "algorithm.spread_floor: 0.0 is not positive"),
        ({}, {"kl": "k1"}, "algorithm.kl: 'k1' is none of k3, k2, full"),
        ({}, {"surrogate": "ppo"}, "algorithm.surrogate: 'ppo' is none of clip, cispo"),
        ({}, {"reference_sync": 8}, "algorithm.reference_sync: there is no reference"),
        ({}, {"refill_rounds": -1}, "algorithm.refill_rounds: negative"),
        ({}, {"normalisation": "tokens"}, "algorithm.normalisation: 'tokens' is none of token, sequence"),
    ],
)
def test_settings_that_contradict_are_refused(arguments, algorithm, message, make_policy, tmp_path):
    with pytest.raises(InputError, match=message):
        trained(make_policy(0), settings(tmp_path, **arguments), **algorithm)


@pytest.mark.parametrize(
    ("config", "message"),
    [(RunConfig(), "model: missing"), (RunConfig(model="x"), "x: no such folder")],
)
def test_a_run_needs_a_model(config, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(config, settings(tmp_path), prompts=PROMPTS)


def test_a_run_needs_prompts(make_policy, tmp_path):
    with pytest.raises(InputError, match="prompts: missing"):
        run(RunConfig(), settings(tmp_path), make_policy(0))


# ---- checkpoints ----


def saving(directory: Path, **changes) -> GRPOConfig:
    return settings(directory, **{"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **changes})


def test_a_checkpoint_is_whole_and_loads(make_policy, tmp_path):
    stray = tmp_path / "_limner-0123456789abcdef" / "new" / "checkpoint-9"  # of a run that was killed
    stray.mkdir(parents=True)
    (stray / "trainer_state.json").write_text("half")
    assert checkpoints(tmp_path) == []
    policy = make_policy(0)
    trained(policy, saving(tmp_path))
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]  # the stray is gone
    assert resume_point(tmp_path, "last") == str(tmp_path / "checkpoint-2")
    last = tmp_path / "checkpoint-2"
    files = {path.relative_to(last).as_posix() for path in last.rglob("*") if path.is_file()}
    assert files >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "limner.json",
        "image_tokenizer/config.json",
        "image_tokenizer/diffusion_pytorch_model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
    assert "README.md" not in files
    modes = {path.stat().st_mode & 0o777 for path in last.rglob("*") if path.is_file()}
    assert modes == {last.stat().st_mode & 0o666}, "as the umask has it, not for the owner alone"
    loaded = load(last)
    assert torch.equal(parameters(loaded), parameters(policy))
    fingerprints = [p.processor.image_tokenizer.fingerprint() for p in (loaded, policy)]
    assert fingerprints[0] == fingerprints[1] and loaded.vocabulary == policy.vocabulary


def test_old_checkpoints_leave_and_a_step_saved_again_replaces_itself(make_policy, tmp_path):
    trained(make_policy(0), saving(tmp_path, max_steps=3, save_total_limit=1))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    (tmp_path / "checkpoint-3" / "old").touch()
    trained(make_policy(0), saving(tmp_path, max_steps=3, save_steps=3))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert not (tmp_path / "checkpoint-3" / "old").exists()


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(
    ("stop", "every"), [(2, 1), (3, 1), (3, 2)], ids=["between-epochs", "in-a-half-used-buffer", "between-log-lines"]
)
def test_resuming_equals_never_having_stopped(stop, every, make_policy, tmp_path):
    """Four prompts and two steps a batch of rollouts: an epoch has two steps, and step 3 stands inside a batch."""
    with ShardWriter(tmp_path / "data") as writer:
        for _, document in zip(range(12), warmup_documents("text_to_image", 0, CLEAN, frozenset()), strict=False):
            writer.write(document)
    replay = ReplayConfig([SourceConfig(str(tmp_path / "data"))], rows=1, pack_length=128)
    algorithm = AlgorithmConfig(process_weight=0.5, beta=PerModality(0.1, 0.1), replay=replay)

    def go(directory, resume=None, callbacks=()):
        args = saving(tmp_path / directory, max_steps=6, save_steps=stop, steps_per_generation=2, logging_steps=every)
        policy = make_policy(0)  # a resumed run starts from the same model: the reference of the KL term
        trainer = InterleavedGRPOTrainer(policy, Illustrated(), algorithm, args, dataset(), callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume_point(tmp_path / directory, resume))
        return trainer

    straight = go("straight")
    stopped = go("parts", callbacks=[StopAfter(stop)])
    assert stopped.state.global_step == stop
    resumed = go("parts", resume="last")
    assert resumed.state.global_step == 6
    assert torch.equal(parameters(resumed.policy), parameters(straight.policy))
    keys = ("loss", "kl/text", "kl/image", "advantage/text", "signal/image", "reward", "replay/loss", "step")
    expected, found = (
        [[entry.get(key) for key in keys] for entry in logs(trainer) if entry["step"] > stop]
        for trainer in (straight, resumed)
    )
    assert found == expected and len(found) >= 2 and all(entry[3] > 0 for entry in found)


def test_a_process_that_the_checkpoint_does_not_know_of_counts_its_steps_from_there(make_policy, tmp_path):
    """With more processes than before some find no random state and no rollouts of theirs."""
    straight = trained(make_policy(0), saving(tmp_path / "straight"))
    trained(make_policy(0), saving(tmp_path / "parts", max_steps=1))
    for name, of_another in (("rng_state.pth", "rng_state_1.pth"), ("rollouts_0.pth", "rollouts_1.pth")):
        (tmp_path / "parts" / "checkpoint-1" / name).rename(tmp_path / "parts" / "checkpoint-1" / of_another)
    args = saving(tmp_path / "parts")
    resumed = InterleavedGRPOTrainer(make_policy(0), Illustrated(), AlgorithmConfig(), args, dataset())
    resumed.train(resume_from_checkpoint=resume_point(tmp_path / "parts", "last"))
    for name in ("step", "signal/text", "signal/image", "loss"):
        assert logs(resumed)[-1][name] == pytest.approx(logs(straight)[-1][name], rel=1e-4), name


# ---- what TRL and the reward hand over ----


def test_the_attributes_that_we_read_are_there(make_policy, tmp_path):
    trainer = InterleavedGRPOTrainer(make_policy(0), Flat(), AlgorithmConfig(), settings(tmp_path), dataset())
    names = ("_step", "_buffered_inputs", "_metrics", "num_generations", "num_iterations", "shuffle_dataset")
    missing = [name for name in names if not hasattr(trainer, name)]
    assert not missing, f"GRPOTrainer no longer has {missing}"
    sampler = GRPOTrainer._get_train_sampler(trainer)
    assert hasattr(sampler, "generator") and hasattr(sampler, "seed"), "RepeatSampler no longer has generator and seed"


def test_a_reward_sees_prompt_answer_and_end(make_policy, tmp_path):
    seen: list[Completion] = []

    class Watching(Flat):
        def __call__(self, completions):
            seen.extend(completions)
            return super().__call__(completions)

    trained(make_policy(0), settings(tmp_path), Watching())
    assert len(seen) == 8 and len({item.prompt.id for item in seen}) == 2
    assert all(item.prompt.meta["outline"] for item in seen)
    assert {item.ended for item in seen} == {True, False}
    assert all(isinstance(item.answer, InterleavedDocument) for item in seen)
    assert all(image.pixels().size == (32, 32) for item in seen for image in item.answer.images)
