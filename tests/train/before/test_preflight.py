"""Preflight: a sound run passes, and each planted fault is caught under its own name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from limner.configs.errors import InputError
from limner.data.mixture import SourceConfig
from limner.data.prompts import pack_prompt, unpack_prompt
from limner.data.shards import ShardWriter
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.models.sampler.generation import Sampling
from limner.models.tokens.sequence import collate
from limner.rewards.base import RewardOutput
from limner.rewards.encoders.text import RougeL, TextReward
from limner.rewards.guard import GuardedReward
from limner.rewards.hybrid import HybridReward
from limner.train import grpo
from limner.train.before.preflight import GAP_BOUNDS, Preflight, PreflightDone, gap_bounds, run_checks
from limner.train.objective.algorithm import AlgorithmConfig, PerModality, ReplayConfig
from limner.train.trainer import InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import CLEAN, warmup_documents

from ...models.families.conformance import ROOM, sampled, scored
from ...models.families.tiny import FAMILIES
from ..runs import PROMPTS, Flat, Illustrated, dataset, parameters, settings


def trainer_of(policy, directory, reward=None, arguments=None, **algorithm):
    algorithm = {"beta": PerModality(0.1, 0.1), "process_weight": 0.5, **algorithm}
    args = settings(directory, **{"max_completion_length": 160, **(arguments or {})})
    return InterleavedGRPOTrainer(policy, reward or Illustrated(), AlgorithmConfig(**algorithm), args, dataset())


def failed(trainer) -> set[str]:
    return {check.name for check in run_checks(trainer) if check.passed is False}


def closing(policy):
    """The policy, its answers short enough to end."""
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[policy.vocabulary.controls.eos, 0] -= 0.5
    return policy


@pytest.fixture
def policy(make_policy):
    return closing(make_policy(0))


def test_a_sound_run_passes_and_is_left_as_it_was(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path)
    before, state = parameters(policy), torch.get_rng_state()
    checks = run_checks(trainer)
    assert [str(check) for check in checks if check.passed is False] == []
    names = {check.name for check in checks}
    for modality in ("text", "image"):
        expected = {"replayed log-probs, {}", "reference equals policy, {}"}
        assert {name.format(modality) for name in expected} <= names
        assert {f"gradient of the {modality} head", f"gradient of the {modality} embedding"} <= names
    assert {"documents close", "pictures are drawn", "reward pictures", "reward all together"} <= names
    assert torch.equal(parameters(policy), before) and torch.equal(torch.get_rng_state(), state)
    assert not trainer._sums and not trainer._loss_sums and all(p.grad is None for p in policy.model.parameters())


def test_a_reference_that_no_prompt_has_is_named_as_that(policy, tmp_path):
    reward = HybridReward([(TextReward("rouge_l", RougeL()), 1.0), (Illustrated(), 1.0)])
    trainer = trainer_of(policy, tmp_path, reward)
    (check,) = [check for check in run_checks(trainer) if check.name.startswith("reference of")]
    assert not check.passed and check.name == "reference of rouge_l"
    assert check.text.startswith(f"0 of {len(PROMPTS)} prompts have `reference` in their meta")
    first, *others = [unpack_prompt(row["prompt"]) for row in trainer.train_dataset]
    rows = [replace(first, meta={"reference": "A circle."}), *others]
    trainer.train_dataset = Dataset.from_dict({"prompt": [pack_prompt(row) for row in rows]})
    (check,) = [check for check in run_checks(trainer) if check.name.startswith("reference of")]
    assert check.passed and f"the others no score (the first: {others[0].id})" in check.text


def test_dropout_makes_another_policy_of_the_sampled_one(policy, tmp_path):
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.2
    assert failed(trainer_of(policy, tmp_path)) >= {"replayed log-probs, text", "replayed log-probs, image"}


def test_a_temperature_that_is_not_scored(policy, tmp_path, monkeypatch):
    trainer = trainer_of(policy, tmp_path)
    scored = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda model, batch, temperature, *rest: scored(model, batch, 1.3, *rest))
    assert failed(trainer) >= {"replayed log-probs, text", "replayed log-probs, image"}


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_in_bfloat16_a_sound_run_is_told_from_another_temperature(guidance, policy, tmp_path, monkeypatch):
    names = {"replayed log-probs, text", "replayed log-probs, image"}
    trainer = trainer_of(policy, tmp_path, arguments={"bf16": True}, guidance=guidance)
    assert not failed(trainer) & names
    scored = policy.log_probs
    monkeypatch.setattr(policy, "log_probs", lambda model, batch, temperature, *rest: scored(model, batch, 1.3, *rest))
    assert failed(trainer) & names  # the codes of this model, nearly all alike under guidance, hardly show it


def test_bounds_grow_as_guidance_makes_errors_grow():
    for dtype, (mean, most) in GAP_BOUNDS.items():
        assert gap_bounds(dtype) == gap_bounds(dtype, 0.5) == (mean, most)
        assert gap_bounds(dtype, 5.0) == (3 * mean, 9 * most)
        assert gap_bounds(dtype, depth=4) == (2 * mean, 4 * most)


@pytest.mark.parametrize(
    ("weights", "forward"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16)]
    + [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)],
    ids=["fp32", "autocast", "bf16", "fp16"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_of_every_family_are_within_the_bounds(family, weights, forward):
    """`-s` prints the figures of docs/performance.md."""
    policy = FAMILIES[family]()
    policy.model.to(weights)
    for guidance in (1.0, 5.0):
        with torch.autocast("cpu", torch.bfloat16, enabled=weights != forward):
            _, samples, sequences = sampled(policy, Sampling(ROOM, guidance=guidance, seed=1), 4)
            batch = collate([[sequence] for sequence in sequences], policy.vocabulary)
            logp_BT = scored(policy, batch, guidance=guidance)
        for modality in ("text", "image"):
            gaps = []
            for row, (sample, sequence) in enumerate(zip(samples, sequences, strict=True)):
                own = slice(sequence.prompt_length, len(sequence))
                image_C = sample.ids_C >= policy.vocabulary.text_size
                at = batch.trainable_BT[row, own] & (image_C if modality == "image" else ~image_C)
                gaps.append((logp_BT[row, own] - sample.logp_C)[at].abs())
            gap = torch.cat(gaps)
            print(f"{family}, guidance {guidance}, {modality}: {gap.mean():.1e}, {gap.max():.1e}")
            mean, most = gap_bounds(forward, guidance if modality == "image" else 1.0)
            assert gap.mean() < mean and gap.max() < most


def test_guidance_that_is_not_scored(policy, tmp_path, monkeypatch):
    trainer = trainer_of(policy, tmp_path, guidance=3.0)
    scored = policy.log_probs
    monkeypatch.setattr(
        policy,
        "log_probs",
        lambda model, batch, t, images, guidance, *rest: scored(model, batch, t, images, 1.0, *rest),
    )
    assert "replayed log-probs, image" in failed(trainer) and "replayed log-probs, text" not in failed(trainer)


def test_a_reward_that_never_varies(policy, tmp_path):
    assert failed(trainer_of(policy, tmp_path, Flat())) >= {"reward all together"}


class Mostly(Illustrated):
    """Varies among the answers to one of four prompts."""

    def __call__(self, completions):
        output, flat = super().__call__(completions), Flat()(completions)
        varies = [completion.prompt.id == PROMPTS[0].id for completion in completions]
        pick = [one if own else other for own, one, other in zip(varies, output.outcome, flat.outcome, strict=True)]
        rows = [one if own else other for own, one, other in zip(varies, output.segments, flat.segments, strict=True)]
        return RewardOutput(pick, rows)


def test_a_reward_that_varies_in_few_groups(policy, tmp_path):
    trainer = trainer_of(policy, tmp_path, Mostly(), {"per_device_train_batch_size": 16})
    checks = {check.name: check for check in run_checks(trainer)}
    assert {"reward all together", "process rewards"} <= {name for name, check in checks.items() if not check.passed}
    assert "75% of groups without a difference; most rollouts would be wasted" in checks["reward all together"].text
    assert "preflight_dead_groups" in checks["reward all together"].text
    assert "--per_device_train_batch_size" not in checks["reward all together"].text
    allowed = {check.name for check in run_checks(trainer, most_dead=1.0) if not check.passed}
    assert not {"reward all together", "process rewards"} & allowed


def test_a_part_of_the_reward_that_never_varies_or_applies(policy, tmp_path):
    class Half(Illustrated):
        def __call__(self, completions):
            output = super().__call__(completions)
            rows = len(completions)
            return RewardOutput(
                output.outcome, output.segments, {"flat": [0.3] * rows, "none": [None] * rows, "perfect": [1.0] * rows}
            )

    assert failed(trainer_of(policy, tmp_path, Half())) == {"reward flat", "reward none"}


def test_scores_beyond_0_to_1_are_named(policy, tmp_path):
    class Area(Illustrated):
        def __call__(self, completions):
            output = super().__call__(completions)
            return replace(output, breakdown={"area": [3221.0 + row for row in range(len(completions))]})

    (check,) = [check for check in run_checks(trainer_of(policy, tmp_path, Area())) if check.name == "reward area"]
    assert check.passed and "scores from 3221 to 32" in check.text and "0 to 1 is expected" in check.text


def test_the_advice_goes_by_whether_the_answers_differ(policy, tmp_path):
    """Whatever the cause, one line with flags to type, and none that could not help."""

    def advice(outcome, temperature=1.0, **arguments):
        class Same(Illustrated):
            def __call__(self, completions):
                return RewardOutput([outcome] * len(completions), super().__call__(completions).segments)

        trainer = trainer_of(policy, tmp_path, Same(), {"temperature": temperature, **arguments}, process_weight=0.0)
        (check,) = [check for check in run_checks(trainer) if check.name == "reward all together"]
        assert not check.passed and "\n" not in check.text
        return check.text

    blind, alike = advice(0.3), advice(0.3, temperature=1e-3)
    assert "answers differ in 2 of 2 groups, so let the reward grade finer" in blind
    assert "--temperature 1.3 (now 1)" in blind and "--num_generations 8 (now 4)" in blind
    assert "answers differ in only 0 of 2 groups, so try --temperature 0.0013 (now 0.001)" in alike
    assert "grade finer" not in alike and "--temperature" not in advice(0.3, temperature=1.6)
    single = advice(0.3, per_device_train_batch_size=4, steps_per_generation=1, gradient_accumulation_steps=1)
    assert "--num_generations 8 (now 4) --steps_per_generation 2" in single
    assert "the reward is at its best" in advice(1.0) and "--temperature" not in advice(1.0)
    assert advice(None).startswith("never applies;") and "--temperature" not in advice(None)


def test_answers_that_are_cut(policy, tmp_path):
    checks = run_checks(trainer_of(policy, tmp_path, arguments={"max_completion_length": 12}))
    (check,) = [check for check in checks if check.name == "documents close"]
    assert not check.passed and "raise max_completion_length" in check.text


def test_a_model_that_opens_no_image(policy, tmp_path):
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[policy.vocabulary.controls.boi, 0] = 5.0
    assert "pictures are drawn" in failed(trainer_of(policy, tmp_path))
    text_only = run_checks(trainer_of(policy, tmp_path, max_images=0))
    assert "pictures are drawn" not in {check.name for check in text_only}


def test_a_reference_that_is_another_model(policy, make_policy, tmp_path):
    trainer = trainer_of(policy, tmp_path)
    trainer.reference = closing(make_policy(5))
    assert failed(trainer) == {"reference equals policy, text", "reference equals policy, image"}


def test_an_embedding_that_is_frozen(policy, tmp_path):
    policy.model.get_input_embeddings().weight.requires_grad_(False)
    assert failed(trainer_of(policy, tmp_path)) == {"gradients"}


@pytest.mark.parametrize("limits", [{}, {"micro_batch_tokens": 40}])
def test_gradients_of_small_batches_are_taken_together(make_policy, tmp_path, limits):
    """The answer that stands out may be the one without a picture, whose row says nothing of the image head."""

    class Plain(Illustrated):
        def __call__(self, completions):
            output = super().__call__(completions)
            return RewardOutput([float(not c.answer.images) for c in completions], output.segments)

    policy = make_policy(0)
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "steps_per_generation": 8}
    checks = run_checks(trainer_of(policy, tmp_path, Plain(), arguments, process_weight=0.0, **limits))
    gradients = {check.name: check for check in checks if check.name.startswith("gradient of")}
    assert len(gradients) == 4 and all(check.passed for check in gradients.values()), gradients
    assert not any("not looked at" in check.text for check in gradients.values())


def test_a_modality_without_an_advantage_is_said_not_to_be_looked_at(policy, tmp_path):
    checks = run_checks(trainer_of(policy, tmp_path, Flat(), beta=PerModality(0.0, 0.0), process_miscount=0.0))
    gradients = [check for check in checks if check.name.startswith("gradient of")]
    assert gradients and all(check.passed is None and "has an advantage" in check.text for check in gradients)


def test_process_rewards_that_never_apply_or_never_vary(policy, tmp_path):
    class Outcome(Illustrated):
        def __call__(self, completions):
            output = super().__call__(completions)
            return RewardOutput(output.outcome, [[None] * len(row) for row in output.segments])

    class Segments(Illustrated):
        def __call__(self, completions):
            return RewardOutput([None] * len(completions), super().__call__(completions).segments)

    assert failed(trainer_of(policy, tmp_path, Outcome())) == {"process rewards"}
    assert failed(trainer_of(policy, tmp_path, Outcome(), process_weight=0.0)) == set()
    assert failed(trainer_of(policy, tmp_path, Segments(), outcome_weight=0.0)) == set()
    assert failed(trainer_of(policy, tmp_path, Segments())) == {"reward all together"}


def test_the_prompts_are_those_of_the_first_batch(policy, tmp_path):
    seen: list[list[str]] = []

    class Told(Illustrated):
        def __call__(self, completions):
            seen.append([completion.prompt.id for completion in completions])
            return super().__call__(completions)

    trainer = trainer_of(policy, tmp_path, Told())
    run_checks(trainer)
    trainer.train()
    assert seen[0] == seen[1] != ["prompt-0"] * 4 + ["prompt-4"] * 4


def test_prompts_of_later_batches_are_looked_at(policy, tmp_path):
    def checked(*later, length=160):
        args = settings(tmp_path, max_completion_length=length, shuffle_dataset=False)
        rows = dataset([*PROMPTS, *later])
        trainer = InterleavedGRPOTrainer(policy, Illustrated(), AlgorithmConfig(), args, rows)
        return next(check for check in run_checks(trainer) if check.name == "prompts")

    assert checked().passed and "4 of 4 encoded" in checked().text
    too_long = InterleavedDocument((TextSegment("word " * 3000),), "long")
    check = checked(too_long)
    assert not check.passed and "5 of 5 encoded" in check.text and "lower max_completion_length" in check.text


def test_what_is_replayed_is_read_before_the_first_step(policy, tmp_path):
    with ShardWriter(tmp_path / "data") as writer:
        for _, document in zip(range(12), warmup_documents("text_to_image", 0, CLEAN, frozenset()), strict=False):
            writer.write(document)

    def replaying(folder, length):
        replay = ReplayConfig([SourceConfig(str(tmp_path / folder))], rows=1, pack_length=length)
        return trainer_of(policy, tmp_path, replay=replay)

    trainer = replaying("data", 128)
    (check,) = [check for check in run_checks(trainer) if check.name == "replay"]
    assert check.passed and float(check.text.split()[0]) > 1
    expected, found = next(replaying("data", 128)._replay), next(trainer._replay)
    assert torch.equal(expected.ids_BT, found.ids_BT), "the run's own stream is where it was"
    with pytest.raises(InputError, match="prompt and picture exceed `pack_length` = 16"):
        run_checks(replaying("data", 16))
    with pytest.raises(InputError, match="nowhere"):
        replaying("nowhere", 128)


def test_a_head_that_the_loss_does_not_reach(policy, tmp_path, monkeypatch):
    image_logits = policy.image_logits
    monkeypatch.setattr(policy, "image_logits", lambda hidden: image_logits(hidden).detach())
    embedding = torch.nn.Parameter(policy.model.get_output_embeddings().weight.clone())
    policy.model.lm_head.weight = embedding  # untied, so that the embedding hides nothing
    assert "gradient of the image head" in failed(trainer_of(policy, tmp_path))


def test_a_failed_check_stops_the_run_before_its_first_step(policy, tmp_path, capsys):
    trainer = trainer_of(policy, tmp_path, Flat())
    trainer.add_callback(Preflight(trainer))
    before = parameters(policy)
    with pytest.raises(InputError, match=r"preflight: reward all together: .* nothing can be learned from it"):
        trainer.train()
    assert trainer.state.global_step == 0 and torch.equal(parameters(policy), before)
    assert "FAIL  reward all together" in capsys.readouterr().out


class Never(Illustrated):
    def __call__(self, completions):
        output = super().__call__(completions)
        return RewardOutput([0.0] * len(completions), [[None] * len(row) for row in output.segments])


class Fails(Illustrated):
    name = "fails"

    def __call__(self, completions):
        raise ValueError("no")


def test_what_is_the_same_for_all_is_said_and_what_follows_from_a_fault_is_no_fault(policy, tmp_path):
    checks = {check.name: check for check in run_checks(trainer_of(policy, tmp_path / "a", Never()))}
    assert checks["reward all together"].text.startswith("0.000 for every answer; nothing can be learned")
    reward = HybridReward([(GuardedReward(Fails()), 1.0)])
    checks = {check.name: check for check in run_checks(trainer_of(policy, tmp_path / "b", reward))}
    assert checks["reward fails"].passed is False and "it raised ValueError" in checks["reward fails"].text
    assert str(checks["reward all together"]) == "-     reward all together: not looked at: a part of it failed"


def test_preflight_alone_takes_no_step_and_a_checked_run_is_the_same_run(make_policy, tmp_path):
    policy = closing(make_policy(0))
    trainer = trainer_of(policy, tmp_path)
    trainer.add_callback(Preflight(trainer, only=True))
    with pytest.raises(PreflightDone):
        trainer.train()
    assert trainer.state.global_step == 0

    def after_a_step(*callbacks: type[TrainerCallback]):
        policy = closing(make_policy(0))
        trainer = trainer_of(policy, tmp_path)
        for callback in callbacks:
            trainer.add_callback(callback(trainer))
        trainer.train()
        return parameters(policy)

    assert torch.equal(after_a_step(), after_a_step(Preflight))


def test_the_command_checks_in_the_runs_own_folder_and_leaves_none_behind(tmp_path, monkeypatch):
    """Processes must share it, so a folder of its own for each would fail the checks."""
    seen = []

    def stopped(config, args):
        seen.append(Path(args.output_dir))
        seen[-1].mkdir(parents=True, exist_ok=True)
        raise InputError("stopped")

    monkeypatch.setattr(grpo, "make_trainer", stopped)
    kept = tmp_path / "kept"
    kept.mkdir()
    for folder in (tmp_path / "new" / "run", kept):
        with pytest.raises(InputError, match="stopped"):
            grpo.preflight(["--output_dir", str(folder), "--use_cpu", "true", "--bf16", "false"])
    assert seen == [tmp_path / "new" / "run", kept] and [*tmp_path.iterdir()] == [kept]


def learning_rate(trainer):
    checks = {check.name: check for check in run_checks(trainer)}
    assert "learning rate" in checks
    return checks["learning rate"]


def test_a_learning_rate_below_the_rounding_of_the_weights_is_caught(policy, tmp_path, monkeypatch):
    """Weights around 0.3 have steps of 2e-3 in bf16 and of 3e-8 in fp32; the model is written in what it came in."""
    adam = {"optim": "adamw_torch", "max_steps": 10_000}

    def check(rate, dtype=torch.float32):
        trainer = trainer_of(policy, tmp_path, arguments={**adam, "learning_rate": rate})
        trainer.policy.model.to(dtype)  # as no set-up of ours leaves it
        return learning_rate(trainer)

    said = "an update of 1e-06 is lost in rounding by 0.0% of the trained weights"
    assert check(1e-6).passed and check(1e-6).text == said
    assert not check(1e-10).passed and "raise learning_rate" in check(1e-10).text
    assert not check(1e-6, torch.bfloat16).passed and check(1e-2, torch.bfloat16).passed


def test_steps_that_hardly_show_in_the_written_model_are_said(policy, tmp_path):
    policy.model.to(torch.bfloat16)
    arguments = {"optim": "adamw_torch", "bf16": True, "learning_rate": 1e-6}
    for steps, seen in ((10, False), (100_000, True)):
        trainer = trainer_of(policy, tmp_path, arguments={**arguments, "max_steps": steps})
        check = learning_rate(trainer)
        assert check.passed and ("hardly show" not in check.text) == seen
