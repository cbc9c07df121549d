import itertools
import random

import numpy as np
import pytest

from limner.data.insertion.placements import Candidate, InsertionTask, Placement
from limner.data.sentences import sentences
from limner.data.sources.mramg import read_corpus, read_questions
from limner.retrieval.answering import Illustrate, answer, candidates_of
from limner.retrieval.index.encoders import Encoders
from limner.retrieval.index.store import Index
from limner.retrieval.placing import PlacementRules, relevance
from limner.retrieval.strategies.rule import RuleInserter, assign
from limner.rewards.rules.insertion import ordering_score, selection

TEXT = "Peel the apples.\nRoll out the puff pastry.\nSpread apricot jam over it.\nBake for forty minutes.\nServe warm."
SENTENCES = tuple(sentences(TEXT))


def task(*candidates: Candidate) -> InsertionTask:
    return InsertionTask("How is strudel made?", SENTENCES, candidates)


def test_the_assignment_is_the_best_one_in_order():
    generator = np.random.default_rng(0)
    for _ in range(60):
        gains = generator.normal(size=(4, 3)).round(1)
        best = 0.0
        for chosen in itertools.product([None, *range(4)], repeat=3):
            places = [place for place in chosen if place is not None]
            if places == sorted(places):
                best = max(best, sum(gains[place, k] for k, place in enumerate(chosen) if place is not None))
        found = assign(gains)
        placed = [place for place in found if place is not None]
        assert placed == sorted(placed)
        assert all(gains[place, k] > 0 for k, place in enumerate(found) if place is not None)
        assert sum(gains[place, k] for k, place in enumerate(found) if place is not None) == pytest.approx(best)


def test_pictures_stand_where_caption_or_context_says_and_others_stay_out():
    candidates = (
        Candidate(None, "rolling out puff pastry", id="d#1", source="d"),
        Candidate(None, "", "Spread apricot jam over it. Bake for forty minutes.", "d#2", "d"),
        Candidate(None, "a bicycle in the rain", "The chain needs oil.", "e#1", "e"),
    )
    assert RuleInserter().place(task(*candidates)) == [Placement(2, 1), Placement(3, 2)]


def test_a_picture_before_the_text_stays_there():
    first = Candidate(None, "", "Peel the apples.", "d#1", "d")
    assert RuleInserter().place(task(first)) == [Placement(0, 1)]


def test_order_of_the_source_holds_but_for_a_picture_it_shows_twice():
    late = Candidate(None, "Serve warm", id="d#1", source="d")
    early = Candidate(None, "Peel the apples", id="d#2", source="d")
    both = (late, early)
    (one,), (other,) = RuleInserter().place(task(*both)), RuleInserter().place(task(*reversed(both)))
    assert both[one.candidate - 1] is both[::-1][other.candidate - 1]  # the source's order is in the ids
    twice = Candidate(None, "", "Cut and serve.\nBake for forty minutes. Serve warm.", "d#1", "d")
    assert RuleInserter().place(task(twice, early)) == [Placement(1, 2), Placement(4, 1)]


def test_documents_that_tell_the_same_do_not_show_it_twice():
    worse = Candidate(None, "Bake them", id="d#1", source="d")
    better = Candidate(None, "Bake for forty minutes", id="e#1", source="e")
    beside = Candidate(None, "Serve warm", id="f#1", source="f")
    assert RuleInserter().place(task(worse, better, beside)) == [Placement(4, 2), Placement(5, 3)]


def test_sections_and_threshold_bind_the_rule_itself():
    text = tuple(sentences("Jam is sweet.\n\n## Steps\nSpread the jam.\n\n## Notes\nKeep the jam cool."))
    jam = InsertionTask("?", text, (Candidate(None, "spread the jam, keep the jam", id="d#1", source="d"),))
    (placed,) = RuleInserter(PlacementRules(sections=["notes"], min_relevance=0.1)).place(jam)
    assert placed.after >= 4
    (placed,) = RuleInserter(PlacementRules(sections=["Steps"], min_relevance=0.1)).place(jam)
    assert placed.after in (2, 3)
    assert RuleInserter(PlacementRules(min_relevance=1.0)).place(jam) == []


def test_relevance_is_bounded_and_zero_without_words():
    silent = Candidate(None, "", "", "d#1", "d")
    fits = relevance(SENTENCES, (silent, Candidate(None, "puff pastry")), lambda texts: np.ones((len(texts), 1)))
    assert fits.shape == (len(SENTENCES) + 1, 2) and fits.min() >= 0 and fits.max() <= 1
    assert not fits[:, 0].any()
    assert relevance((), (silent,)).shape == (1, 1) and relevance(SENTENCES, ()).shape == (6, 0)


@pytest.mark.slow
def test_the_rule_beats_nothing_all_and_random_on_real_recipes(real_data, tmp_path, capsys):
    folder = real_data / "mramg_schema"
    index = Index.create(tmp_path / "index", Encoders())
    index.add(read_corpus(folder), whole=True)
    chance, scores = random.Random(0), {}
    for item in read_questions(folder):
        hits = index.search(item.question)
        offered = [candidate.id for candidate in candidates_of(hits)[0]]
        text = item.ground_truth.replace("<PIC>", "")
        strategies = {
            "rule": Illustrate(RuleInserter().place, text),
            "rule, extracted text": Illustrate(RuleInserter().place),
            "rule, extract and own pictures": Illustrate(RuleInserter().place, document=index.chunks_of, own=True),
        }
        found = {}
        for name, strategy in strategies.items():
            answered = answer(item.question, hits, strategy)
            found[name] = [answered.candidates[image.candidate - 1].id for image in answered.document.images]
        found["nothing"], found["all"] = [], offered
        drawn = [("random, as many as the rule", chance.sample(offered, len(found["rule"]))) for _ in range(50)]
        for name, ids in [*found.items(), *drawn]:
            chosen = selection(item.images, ids)
            row = (chosen.precision, chosen.recall, chosen.f1, ordering_score(item.images, ids))
            scores.setdefault(name, []).append(row)
    means = {name: np.mean(rows, axis=0) for name, rows in scores.items()}
    with capsys.disabled():
        for name, mean in means.items():
            print(
                f"\n{name}: precision {mean[0]:.3f} recall {mean[1]:.3f} F1 {mean[2]:.3f} order {mean[3]:.3f}", end=""
            )
    for trivial in ("nothing", "all", "random, as many as the rule"):
        assert (means["rule"][2:] > means[trivial][2:]).all(), trivial
        assert (means["rule, extracted text"][2:] > means[trivial][2:]).all(), trivial
        assert (means["rule, extract and own pictures"][2:] > means[trivial][2:]).all(), trivial
