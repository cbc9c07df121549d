"""What a model could before: a hundred questions, passages of English, and figures that say when something is lost."""

import pytest

from limner.worlds.icon_tales import kept
from limner.worlds.icon_tales.kept import is_right, measure_kept, passages, questions
from limner.worlds.icon_tales.written import TASKS, TOPICS, first_sentence


def test_a_hundred_different_questions_none_of_them_among_what_is_kept():
    asked = [question for question, _ in questions()]
    assert len({*asked}) == len(asked) == 100 and all(words for _, words in questions())
    assert not {*asked} & {task.format(topic=topic) for task in TASKS for topic in TOPICS}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The capital of France is Paris.", True),
        ("PARIS", True),
        ("It is in the suburb Parisville.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_where_it_holds_the_word(answer, right):
    assert is_right(answer, ("paris",)) is right


def test_passages_are_english_with_titles():
    found = passages()
    assert len(found) == kept.PASSAGES and len({title for title, _ in found}) > 30
    assert all(title and 10 < len(text.split()) <= kept.PASSAGE_WORDS for title, text in found)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"A fox ran." Then it slept.', "A fox ran."),
        ("A fox ran", ""),
        ("\n A fox ran!\nMore.", "A fox ran!"),
        ("Title\nA fox ran.", ""),
        ("", ""),
    ],
)
def test_the_first_sentence_of_what_a_model_wrote(text, sentence):
    assert first_sentence(text) == sentence


def test_figures_of_a_model(make_policy, monkeypatch):
    monkeypatch.setattr(kept, "ANSWER_TOKENS", 4)
    monkeypatch.setattr(kept, "PASSAGE_WORDS", 12)
    policy = make_policy()
    before = measure_kept(policy)
    assert {name: len(rows) for name, rows in before.items()} == {
        "nats": kept.PASSAGES,
        "right": 100,
        "agreement": 100,
        "chat": 100,
    }
    assert set(before["agreement"]) == {1.0} and all(nats > 0 for nats in before["nats"])
    after = measure_kept(policy, [1.0 - right for right in before["right"]], batch_size=3)
    assert set(after["agreement"]) == {0.0} and after["nats"] == pytest.approx(before["nats"], rel=1e-4)
