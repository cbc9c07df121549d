"""From answers to the advantages of their tokens, and groups of further prompts in place of dead ones."""

from collections.abc import Sequence

import pytest
import torch

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.sampler.generation import Sampling
from limner.models.tokens.sequence import collate
from limner.rewards.base import Completion, RewardOutput
from limner.train.objective.algorithm import AlgorithmConfig, PerModality, Schedule
from limner.train.rollout import Rollout, Scores, further_prompts, rollout, score
from limner.train.trainer import InterleavedGRPOTrainer
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .runs import PROMPTS, Flat, Illustrated, dataset, logs, parameters, settings, trained

SENTENCE = TextSegment("A red circle.", trainable=True)
PICTURE = ImageSegment(draw_scene(SCENES[0]), trainable=True, origin="generated")


class Judged:
    """Sentences are good at `text`, pictures at `image`; the outcome is the mean, or what was given."""

    name = "judged"

    def __init__(self, text: float, image: float, outcome: Sequence[float | None] | None = None):
        self.text, self.image, self.outcome = text, image, outcome

    def __call__(self, completions):
        segments = [
            [self.text if isinstance(segment, TextSegment) else self.image for segment in completion.answer.segments]
            for completion in completions
        ]
        outcome = list(self.outcome or [sum(row) / len(row) for row in segments])
        return RewardOutput(outcome, segments, {"judged": outcome})


def written(processor, answer: str, ended: bool = True) -> Rollout:
    """An answer as the sampler would write it; TI is a sentence and a picture, and it was certain of neither."""
    parts = [SENTENCE if kind == "T" else PICTURE for kind in answer]
    sequence = processor.encode(InterleavedDocument((TextSegment("Illustrate."), *parts)))
    ids_C = sequence.ids_T[sequence.prompt_length :]
    reading = processor.read(ids_C.tolist())
    prompt = InterleavedDocument((TextSegment("Illustrate."),))
    joined = processor.join(processor.encode(prompt), ids_C, reading)
    completion = Completion(prompt, reading.document, ended=ended)
    return Rollout(completion, joined, -0.5 * joined.trainable_T, cut_image=False)


def advantages(make_policy, tmp_path, answers: Sequence[str], reward, cut: Sequence[int] = (), **algorithm):
    """One row a token and answer: (segment, process advantage)."""
    policy = make_policy(0)
    config = AlgorithmConfig(**{"outcome_weight": 0.0, "process_weight": 1.0, "process_discount": 0.0, **algorithm})
    args = settings(tmp_path, num_generations=len(answers), per_device_train_batch_size=len(answers))
    trainer = InterleavedGRPOTrainer(policy, reward, config, args, dataset())
    rollouts = [written(policy.processor, answer, row not in cut) for row, answer in enumerate(answers)]
    trainer.sample = lambda *_, **__: rollouts
    batch = trainer.roll_out([{"prompt": dataset()[0]["prompt"]}] * len(answers))
    rows = []
    for item, row in zip(rollouts, batch.advantages_RT.tolist(), strict=True):
        start = item.sequence.prompt_length
        owners = item.sequence.segment_T[start:].tolist()
        rows.append(list(zip(owners, row[start : start + len(owners)], strict=True)))
    return rows


def test_equal_quality_in_another_order_is_no_difference(make_policy, tmp_path):
    rows = advantages(make_policy, tmp_path, ["TI", "TI", "TI", "IT"], Judged(text=0.9, image=0.5))
    largest = max(abs(value) for row in rows for _, value in row)
    assert largest < 1e-3, f"an advantage of {largest:.2f} at equal quality"


def test_stopping_halfway_is_not_free(make_policy, tmp_path):
    rows = advantages(make_policy, tmp_path, ["TITI", "TITI", "TITI", "TI"], Judged(0.8, 0.8), process_discount=1.0)
    first = [row[0][1] for row in rows]
    assert first[3] < min(first[:3]) - 1, f"the one that stops gets {first[3]:.2f}, the others {first[0]:.2f}"
    assert rows[3][-1][1] == -2 and rows[0][-1][1] == 0  # of <eos>


def test_writing_on_is_not_free(make_policy, tmp_path):
    rows = advantages(make_policy, tmp_path, ["TI", "TI", "TI", "TITI"], Judged(0.8, 0.8))
    began = [next(value for owner, value in rows[3] if owner == k) for k in range(4)]
    assert began[:2] == [0, 0] and began[2:] == [-1, -1], f"beginning its segments gets {began}"
    assert sum(value != 0 for _, value in rows[3]) == 2  # the decisions alone, not every code of a picture


def test_the_best_outcome_says_how_much_belongs(make_policy, tmp_path):
    """Three of four stop too early, and a reward for structure knows."""
    reward = Judged(0.8, 0.8, outcome=[0.4, 0.4, 0.4, 0.8])
    rows = advantages(make_policy, tmp_path, ["TI", "TI", "TI", "TITI"], reward)
    assert [row[-1][1] for row in rows] == [-2, -2, -2, 0] and all(value == 0 for _, value in rows[3])


def test_an_answer_that_was_cut_did_not_choose_to_end(make_policy, tmp_path):
    rows = advantages(make_policy, tmp_path, ["TITI", "TITI", "TITI", "TI"], Judged(0.8, 0.8), cut=[3])
    assert all(value == 0 for row in rows for _, value in row)


def test_the_papers_pooled_sums_stay_as_they_are(make_policy, tmp_path):
    class ByRow:
        name = "by_row"

        def __call__(self, completions):
            good = [1.0, 1.0, 0.0]
            segments = [[value] * len(c.answer.segments) for value, c in zip(good, completions, strict=True)]
            return RewardOutput(good, segments)

    literal = {"process_pooled": True, "process_discount": 1.0, "process_miscount": 0.0}
    rows = advantages(make_policy, tmp_path, ["TITI", "TI", "TITI"], ByRow(), **literal)
    assert [round(row[0][1], 2) for row in rows] == [3.27, 1.63, -4.90]


def test_negative_advantages_fade_over_the_run(make_policy, tmp_path, monkeypatch):
    schedule = Schedule(start=1.0, end=0.0, over=0.5)
    assert [schedule.at(progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [1, 0.5, 0, 0]
    config = AlgorithmConfig(negative_weight=schedule)
    trainer = InterleavedGRPOTrainer(make_policy(0), Illustrated(), config, settings(tmp_path), dataset())
    trainer.state.max_steps, least = 4, []
    inputs = trainer.first_inputs()
    monkeypatch.setattr(InterleavedGRPOTrainer, "rollout_seed", 0)
    for step in range(4):
        trainer.state.global_step = step
        least.append(trainer.roll_out(inputs).advantages_RT.min().item())
    assert least[0] < 0 and least[1] == pytest.approx(least[0] / 2) and least[2] == least[3] == 0


def test_segment_rejection_imitates_the_best_of_what_is_compared(make_policy, tmp_path):
    class Ranked:
        name = "ranked"

        def __call__(self, completions):
            segments = [[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]]
            return RewardOutput([0.5, 0.6, 0.5], segments)

    rows = advantages(make_policy, tmp_path, ["TI", "TI", "TI"], Ranked(), objective="segment-rejection")
    imitated = [{owner for owner, value in row if value} for row in rows]
    assert imitated == [{0}, {1, 2}, set()]  # the first's sentence; the second's picture, and its end
    assert {value for row in rows for _, value in row} == {0.0, 1.0}


def test_a_step_of_segment_rejection_learns_from_them_alone(make_policy, tmp_path):
    trainer = trained(make_policy(0), settings(tmp_path), objective="segment-rejection")
    (rows,) = trainer._buffered_inputs
    tokens = trainer.tokens_of(rows)
    assert torch.equal(tokens.trained_BT, rows["trainable_BT"] & (rows["advantages_BT"] > 0))
    assert 0 < tokens.trained_BT.sum() < rows["trainable_BT"].sum() and trainer.reference is None


# ---- dynamic sampling ----


class Solved(Illustrated):
    """The prompts that begin with the first one's text are solved: their groups are dead."""

    def __init__(self, dead: Sequence[str]):
        self.dead, self.seen = set(dead), []

    def __call__(self, completions):
        output = super().__call__(completions)
        ids = [completion.prompt.id for completion in completions]
        self.seen.append(ids)
        flat = [row if name not in self.dead else 1.0 for row, name in zip(output.outcome, ids, strict=True)]
        return RewardOutput(flat, output.segments, {"pictures": flat})


def test_dead_groups_are_replaced_by_further_prompts(make_policy, tmp_path):
    names = [prompt.id for prompt in PROMPTS]
    reward = Solved(names[:3])
    found = []
    trainer = InterleavedGRPOTrainer(
        make_policy(0), reward, AlgorithmConfig(refill_rounds=20), settings(tmp_path), dataset(), [found.append]
    )
    trainer.train()
    (batch,) = found
    groups = [batch.rollouts[row].completion.prompt.id for row in (0, 4)]
    assert groups == [names[3]] * 2 and batch.advantages_RT.any(1).all()
    assert all(item.completion.prompt.id == groups[0] for item in batch.rollouts)
    history = logs(trainer)[0]
    assert history["dead_before_refill"] >= 0.5 and history["dead_groups"] == 0
    # The rollouts that stayed, and those that came in, are those that the reward saw.
    assert batch.output.outcome == [min(1.0, len(r.completion.answer.images) / 3) for r in batch.rollouts]


def test_after_its_rounds_a_batch_is_taken_as_it_is(make_policy, tmp_path):
    policy = make_policy(0)
    trainer = trained(policy, settings(tmp_path), Flat(), refill_rounds=2)
    assert torch.equal(parameters(policy), parameters(make_policy(0)))
    history = logs(trainer)[0]
    assert history["dead_before_refill"] == history["dead_after_refill/1"] == history["dead_after_refill/2"] == 1


def test_a_refilled_run_resumes_bit_for_bit(make_policy, tmp_path):
    names = [prompt.id for prompt in PROMPTS]

    def run(directory, resume=None, **changes):
        policy = make_policy(0)
        args = settings(tmp_path / directory, max_steps=3, save_strategy="steps", save_steps=1, **changes)
        config = AlgorithmConfig(refill_rounds=2)
        trainer = InterleavedGRPOTrainer(policy, Solved(names[:2]), config, args, dataset())
        trainer.train(resume_from_checkpoint=resume)
        return parameters(policy)

    whole = run("whole")
    resumed = run("resumed", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(whole, resumed)


def test_groups_that_straddle_processes_are_not_refilled(make_policy, tmp_path):
    args = settings(tmp_path, num_generations=4)
    args.per_device_train_batch_size = 2
    with pytest.raises(InputError, match="refill_rounds: a process samples 2 rollouts, which are no whole groups of 4"):
        InterleavedGRPOTrainer(make_policy(0), Flat(), AlgorithmConfig(refill_rounds=1), args, dataset())


def test_further_prompts_depend_on_step_and_round_alone():
    first = further_prompts(50, 4, seed=0, step=7, number=0)
    assert first == further_prompts(50, 4, 0, 7, 0) and len({*first}) == 4
    assert first != further_prompts(50, 4, 0, 7, 1) != further_prompts(50, 4, 0, 8, 0)
    assert len(further_prompts(3, 5, 0, 0, 0)) == 5


def test_scores_survive_the_way_over_processes(make_policy):
    policy = make_policy(0)
    rollouts = [written(policy.processor, answer, ended) for answer, ended in (("TI", True), ("TITI", False))]
    scores = score(rollouts, RewardOutput([0.5, None], [[0.1, None], [0.2, 0.3, 0.4, 0.5]]))
    again = Scores.from_tables(*scores.to_tables())
    for name in Scores.__slots__:
        one, other = getattr(scores, name), getattr(again, name)
        assert one.dtype == other.dtype and torch.equal(one.nan_to_num(9), other.nan_to_num(9)), name
    assert scores.kind_RK.tolist() == [[0, 1, -1, -1], [0, 1, 0, 1]] and scores.ended_R.tolist() == [True, False]
    assert (scores.score_norm_RK[scores.kind_RK >= 0] > 0).all()


def test_rollouts_are_drawn_by_their_numbers(make_policy):
    policy = make_policy(0)
    sampling = Sampling(max_new_tokens=12, seed=5)
    both = rollout(policy, [PROMPTS[0]] * 4, sampling)
    some = rollout(policy, [PROMPTS[0]] * 2, sampling, numbers=[3, 1])
    for one, number in zip(some, (3, 1), strict=True):
        assert torch.equal(one.sequence.ids_T, both[number].sequence.ids_T)
    assert rollout(policy, [], sampling) == []


def test_rollouts_in_chunks_are_the_same(make_policy, tmp_path, monkeypatch):
    policy, rows = make_policy(0), set()
    hidden = policy.hidden
    monkeypatch.setattr(policy, "hidden", lambda ids, *rest: rows.add(len(ids)) or hidden(ids, *rest))
    found = []
    for rollout_rows in (None, 3):
        algorithm = AlgorithmConfig(rollout_rows=rollout_rows)
        trainer = InterleavedGRPOTrainer(policy, Flat(), algorithm, settings(tmp_path), dataset())
        rows.clear()
        found.append(trainer.sample([PROMPTS[0]] * 4 + [PROMPTS[1]] * 4, 1, range(8)))
        assert max(rows) == (rollout_rows or 8)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.sequence.ids_T, other.sequence.ids_T)
        assert (one.logp_T - other.logp_T).abs().max() < 1e-4


# ---- reference and entropy over a run ----


@pytest.mark.parametrize("kl", ["k3", "k2", "full"])
def test_every_kl_is_zero_at_the_start_and_grows(kl, make_policy, tmp_path):
    history = logs(trained(make_policy(0), settings(tmp_path, max_steps=3), beta=PerModality(0.1, 0.1), kl=kl))
    for name in ("text", "image"):
        assert abs(history[0][f"kl/{name}"]) < 1e-6 < 1e-4 < history[2][f"kl/{name}"]


def test_kl_over_all_choices_in_parts_and_chunks_is_the_whole(make_policy, tmp_path):
    def after(name, **changes):
        policy = make_policy(0)
        args = settings(tmp_path / name, optim="sgd", learning_rate=0.5, max_steps=2)
        algorithm = {"beta": PerModality(0.5, 0.5), "kl": "full", "guidance": 1.5, **changes}
        return parameters(policy), logs(trained(policy, args, **algorithm))[1], parameters(policy)

    start, one, whole = after("whole")
    _, many, parts = after("parts", micro_batch_tokens=150, score_chunk=11)
    assert (whole - start).abs().max() > 1e-3 and torch.allclose(whole, parts, atol=1e-5)
    assert one["kl/image"] == pytest.approx(many["kl/image"], rel=1e-3) and one["kl/image"] > 0


def test_the_kl_over_all_choices_is_that_of_the_distributions(make_policy):
    one, other = make_policy(0), make_policy(1)
    sampled = rollout(one, PROMPTS[:2] * 2, Sampling(max_new_tokens=40, seed=1))
    tokens = collate([[item.sequence] for item in sampled], one.vocabulary)
    log_q = other.distributions(other.model, tokens, max_images=3)
    log_p = one.distributions(one.model, tokens, max_images=3)
    logp_BT, _, kl_BT = one.log_probs_and_kl(one.model, tokens, log_q, max_images=3)
    assert torch.equal(logp_BT, one.log_probs(one.model, tokens, max_images=3)[0])
    image_BT = tokens.trainable_BT & (tokens.ids_BT >= one.vocabulary.text_size)
    for at, p, q in zip((tokens.trainable_BT & ~image_BT, image_BT), log_p, log_q, strict=True):
        expected = torch.nn.functional.kl_div(q.clamp(min=-1e4), p.clamp(min=-1e4), reduction="none", log_target=True)
        assert torch.allclose(kl_BT[at], expected.sum(1), atol=1e-4) and kl_BT[at].min() > 0


def test_the_reference_follows_the_policy(make_policy, tmp_path):
    algorithm = {"beta": PerModality(0.1, 0.1), "reference_sync": 2}

    def run(name, resume=None):
        policy = make_policy(0)
        args = settings(tmp_path / name, max_steps=4, save_strategy="steps", save_steps=1)
        trainer = InterleavedGRPOTrainer(policy, Illustrated(), AlgorithmConfig(**algorithm), args, dataset())
        trainer.train(resume_from_checkpoint=resume)
        return trainer, parameters(policy)

    whole, end = run("whole")
    history = logs(whole)
    for name in ("text", "image"):
        assert history[1][f"kl/{name}"] > 1e-5 > abs(history[2][f"kl/{name}"]) and history[3][f"kl/{name}"] > 1e-5
    for step in (2, 3):  # before and after it was synced
        resumed, again = run(f"from-{step}", str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert torch.equal(end, again)
        assert torch.equal(parameters(resumed.reference), parameters(whole.reference))


def test_the_entropy_bonus_follows_the_entropy_and_resumes(make_policy, tmp_path):
    target = {"entropy_target": PerModality(99.0, 0.0), "entropy_bonus_step": 0.01}

    def run(name, resume=None, **changes):
        policy = make_policy(0)
        args = settings(tmp_path / name, max_steps=3, save_strategy="steps", save_steps=1)
        trainer = InterleavedGRPOTrainer(policy, Illustrated(), AlgorithmConfig(**target), args, dataset())
        trainer.train(resume_from_checkpoint=resume)
        return logs(trainer), parameters(policy)

    history, end = run("whole")
    assert [entry.get("entropy_bonus/text") for entry in history] == [None, pytest.approx(0.01), pytest.approx(0.02)]
    assert history[2]["entropy_bonus/image"] == 0
    again, resumed = run("resumed", str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(end, resumed) and again[-1]["entropy_bonus/text"] == pytest.approx(0.02)
