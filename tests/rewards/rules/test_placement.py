"""Rewards of an inserter: every shortcut loses against the gold answer, though single terms reward it."""

import pytest

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, InsertionTask, Placement
from limner.data.insertion.prompt import answer_text, read_answer
from limner.rewards.rules.insertion import ordering_score
from limner.rewards.rules.placement import SCORES, PlacementWeights, gold_columns, total, trl_rewards

GOLD = (Placement(1, 2), Placement(2, 5), Placement(4, 3))
TASK = InsertionTask("?", tuple("abcd"), tuple(Candidate(None, str(n)) for n in range(8)), GOLD)
NOTHING = InsertionTask("?", tuple("abcd"), TASK.candidates)
FLOOD = [Placement(n % 5, n) for n in range(1, 9)]
REVERSED = [Placement(p.after, q.candidate) for p, q in zip(GOLD, reversed(GOLD), strict=True)]


WEIGHTS = PlacementWeights()


def earned(text, task=TASK, weights=WEIGHTS):
    return total(read_answer(text, len(task.sentences), len(task.candidates)), task, weights)


def test_the_gold_answer_alone_earns_everything():
    assert earned(answer_text(GOLD)) == 1
    shortcuts = {
        "reversed": answer_text(REVERSED),
        "flooded": answer_text(FLOOD),
        "flooded gold first": answer_text([*GOLD, *(p for p in FLOOD if p.candidate not in (2, 5, 3))]),
        "empty": answer_text([]),
        "one": answer_text(GOLD[:1]),
        "one too many": answer_text([*GOLD, Placement(0, 1)]),
        "shifted": answer_text([Placement(p.after - 1, p.candidate) for p in GOLD]),
        "unframed": answer_text(GOLD).replace("<think></think>", ""),
        "chatter": "I place them so: " + answer_text(GOLD),
        "repeated": answer_text([*GOLD, GOLD[0]]),
        "unreadable": "<answer>2 after 1</answer>",
        "nothing": "",
    }
    scores = {name: earned(text) for name, text in shortcuts.items()}
    assert max(scores.values()) < 0.95, scores
    for name in ("reversed", "flooded", "empty"):
        assert scores[name] < 0.9, scores
    assert scores["empty"] < scores["one"] < 1 and scores["flooded"] < scores["one"]
    assert min(scores, key=lambda name: scores[name]) in ("nothing", "unreadable")


def test_the_ordering_score_alone_would_not_tell():
    numbers = [p.candidate for p in GOLD]
    assert ordering_score(numbers, numbers[::-1]) > 0.75
    only = PlacementWeights(0, 0, 1, 0, 0, 0)
    assert earned(answer_text(REVERSED), weights=only) > 0.75  # and the places are all wrong
    shifted = answer_text([Placement(0, p.candidate) for p in GOLD])
    assert earned(shifted, weights=only) == 1 > earned(shifted)
    flooded = answer_text([*GOLD, *(p for p in FLOOD if p.candidate not in numbers)])
    assert earned(flooded, weights=only) > 0.4


def test_no_single_term_is_enough():
    """Each term is full for some answer that is not right."""
    full = {
        "format": answer_text([]),
        "selection": answer_text([Placement(0, p.candidate) for p in GOLD]),
        "order": answer_text([Placement(0, p.candidate) for p in GOLD]),
        "position": answer_text([*GOLD, Placement(0, 1)]),
        "abstention": answer_text(FLOOD),
        "restraint": answer_text([]),
    }
    assert set(full) == set(SCORES)
    for name, text in full.items():
        answer = read_answer(text, 4, 8)
        assert SCORES[name](answer, GOLD, 4, 8) == 1 and earned(text) < 1


def test_where_nothing_belongs_abstaining_is_right_and_silence_is_not():
    assert earned(answer_text([]), NOTHING) == 1
    assert earned(answer_text([Placement(1, 1)]), NOTHING) < 0.5
    assert earned(answer_text(FLOOD), NOTHING) < earned(answer_text([Placement(1, 1)]), NOTHING)
    assert earned("", NOTHING) == 0 == earned("<answer>nothing fits</answer>", NOTHING)


def test_trl_gets_a_named_function_a_term():
    functions, weights = trl_rewards(PlacementWeights(order=0, selection=3))
    assert [f.__name__ for f in functions] == ["format", "selection", "position", "abstention", "restraint"]
    assert weights == [1, 3, 2, 1, 2]
    rows = [gold_columns(TASK), gold_columns(NOTHING)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    logged = {}
    texts = [answer_text(GOLD), "<answer>no</answer>"]
    for completions in (texts, [[{"role": "assistant", "content": text}] for text in texts]):
        scores = {
            f.__name__: f(prompts=[], completions=completions, log_metric=logged.__setitem__, **columns)
            for f in functions
        }
        assert [row[0] for row in scores.values()] == [1] * 5
        assert scores["position"][1] is None and scores["format"][1] == 0
    assert logged == {"faults/no JSON": 0.5}


def test_weights_that_leave_nothing_are_refused():
    for values in ((0, 0, 0, 0, 0, 0), (1, -1, 0, 0, 0, 0), (float("nan"), 1, 1, 1, 1, 1)):
        with pytest.raises(InputError, match="^insertion.rewards.*(weights|expected a number)"):
            PlacementWeights(*values)
