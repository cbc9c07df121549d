"""The embedded inserter: its tasks are sound, their noise is as said, and all stages of the benchmark run."""

import json
import random
from types import SimpleNamespace

import pytest
import torch

from limner.configs.errors import InputError
from limner.data.insertion.placements import Placement, settled
from limner.data.insertion.prompt import read_answer
from limner.retrieval.strategies.inserter import Prompter
from limner.studies.bench.insertion import InsertionBenchConfig, main, scores
from limner.worlds.captions.scenes import (
    ANIMALS,
    FURNITURE,
    OTHER_WORDS,
    AnswerNoise,
    WorldSize,
    answer_loss,
    make_world,
    new_tokenizer,
    noisy,
    thought,
)

SAME = {other: word for word, other in OTHER_WORDS.items()}


def said(text):
    """The thing of a sentence or a caption."""
    word = text.strip(" .").split()[1]
    return SAME.get(word, word)


def test_a_candidate_belongs_where_a_sentence_says_the_same_and_else_nowhere():
    tasks = make_world(0, 200, WorldSize(), "test")
    for task in tasks:
        sentences = [said(sentence) for sentence in task.sentences]
        assert len(task.candidates) == 10 and not settled(task.gold, len(sentences), 10)[1]
        gold = {placement.candidate: placement.after for placement in task.gold}
        for number, candidate in enumerate(task.candidates, 1):
            named = said(candidate.caption)
            assert sentences[gold[number] - 1] == named if number in gold else named not in sentences
    assert 0.08 < sum(not task.gold for task in tasks) / len(tasks) < 0.25


def test_the_mode_of_the_noise_is_wrong_for_animals_and_furniture():
    rng, late, out = random.Random(0), [], []
    for task in make_world(1, 800, WorldSize(), "test"):
        placed = {p.candidate: p.after for p in noisy(task, rng, AnswerNoise(moved=0, missing=0, extra=0))}
        for p in task.gold:
            thing = task.meta["things"][p.candidate - 1]
            if thing in FURNITURE:
                out.append(p.candidate not in placed)
            elif thing in ANIMALS and p.after < len(task.sentences):
                late.append(placed[p.candidate] == p.after + 1)
            elif thing not in ANIMALS:
                assert placed[p.candidate] == p.after
    assert sum(out) / len(out) > 0.55 and sum(late) / len(late) > 0.55


def test_a_thought_says_where_each_candidate_stands():
    (task,) = make_world(0, 1, WorldSize(candidates=3), "test")
    a, b, c = (candidate.caption for candidate in task.candidates)
    assert thought(task, [Placement(2, 1), Placement(0, 3)]) == f"1: {a} 2 2: {b} no 3: {c} 0"


def test_a_thing_is_one_token_wherever_it_is_named():
    """What a small model is to match must look the same in sentence, caption and thought."""
    tokenizer = new_tokenizer(WorldSize())
    for word in [*OTHER_WORDS, *OTHER_WORDS.values()]:
        assert len(tokenizer(f" {word}.", add_special_tokens=False)["input_ids"]) == 1, word


def test_a_warm_up_answer_earns_what_its_placements_earn():
    """Read as TRL reads a completion: decoded without control tokens."""
    prompter = Prompter(new_tokenizer(WorldSize()))
    (task,) = [task for task in make_world(0, 9, WorldSize(), "test") if task.gold][:1]
    learnt = {}

    def model(input_ids, labels, use_cache):
        learnt["ids"] = labels[0][labels[0] >= 0].tolist()
        return SimpleNamespace(loss=torch.zeros(()))

    answer_loss(model, prompter, [task], [task.gold])
    text = prompter.tokenizer.decode(learnt["ids"], skip_special_tokens=True)
    answer = read_answer(text, len(task.sentences), len(task.candidates))
    assert answer.placements == task.gold and answer.framed and not answer.faults


def test_scores_of_gold_and_of_nothing():
    tasks = make_world(0, 50, WorldSize(), "test")
    assert scores(tasks, [task.gold for task in tasks]) == {"f1": 1, "place": 1, "exact": 1}
    nothing = scores(tasks, [()] * 50)
    assert nothing["place"] == 0 and nothing["f1"] == nothing["exact"] == sum(not task.gold for task in tasks) / 50


def test_all_stages_run_and_are_printed_and_a_finished_seed_is_kept(tmp_path, capsys):
    sizes = [
        "--hidden_size=32",
        "--layers=1",
        "--warmup_steps=3",
        "--grpo_batches=1",
        "--grpo_prompts=1",
        "--pair_steps=2",
    ]
    sizes += ["--heldout=3", "--timed=2", "--turns=2", "--world.candidates=3", f"--out={tmp_path}"]
    main([*sizes, "--json", str(tmp_path / "figures.json")])
    (row,) = json.loads((tmp_path / "figures.json").read_text())["seeds"]
    assert set(row["scores"]) == {"rule", "warmup", "grpo", "pairs"}
    assert all(0 <= value <= 1 for values in row["scores"].values() for value in values.values())
    assert row["latency"]["written_over_scored"]["value"] > 1
    printed = capsys.readouterr().out
    assert "goal 5 at no lower F1" in printed and printed.count("grpo") >= 1

    main([*sizes, "--json", str(tmp_path / "again.json")])
    assert "seed 0: kept from before" in capsys.readouterr().out
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == json.loads((tmp_path / "figures.json").read_text())
    with pytest.raises(InputError, match="other settings"):
        main([*sizes, "--pair_steps=3"])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="seeds"):
        InsertionBenchConfig(seeds=[])
    with pytest.raises(InputError, match="turns"):
        InsertionBenchConfig(turns=0)
