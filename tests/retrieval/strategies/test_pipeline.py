"""Two models that answer together: markers of candidates and described pictures side by side."""

from collections import Counter

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.chat.painters.painter import REFUSED, Painted
from limner.models.chat.requests import Failure, Reply
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.retrieval.answering import answer
from limner.retrieval.index.corpus import Hit, make_chunks
from limner.retrieval.placing import PlacementRules
from limner.retrieval.strategies.pipeline import Pipeline

STRUDEL = InterleavedDocument(
    (TextSegment("Roll out the strudel pastry."), ImageSegment(Image.new("RGB", (24, 16), "red"), alt="pastry")),
    "strudel.md",
)
HITS = [Hit(chunk, 1.0, ("words",)) for chunk in make_chunks(STRUDEL)[0]]


class Writer:
    def __init__(self, text):
        self.text, self.asked = text, []

    def complete(self, requests):
        self.asked += requests
        return [Reply(self.text) for _ in requests]


class Painting:
    """Paints blue; refuses what is bad, and fails on what is broken."""

    def __init__(self):
        self.counts, self.wanted = Counter(), []

    def paint(self, wanted):
        self.wanted += wanted
        return [self.one(each.words) for each in wanted]

    def one(self, words):
        if "broken" in words:
            return Failure("timeout", "no answer within 1 s")
        return Painted(None, (REFUSED,)) if "bad" in words else Painted(Image.new("RGB", (8, 8), "blue"))


def answered(text, **rules):
    painter, rules = Painting(), PlacementRules(**rules)
    found = answer("How is strudel pastry made?", HITS, Pipeline(Writer(text), rules, painter=painter), rules)
    return found, painter


def shown(found):
    return [(image.origin, image.candidate, image.alt) for image in found.document.images]


def test_candidates_are_inserted_and_descriptions_are_painted_where_they_stand():
    found, painter = answered(
        "Roll it. <img1> Bake it <picture>A strudel.</picture> well. Serve.\n<picture>Cream.</picture>"
    )
    assert shown(found) == [
        ("inserted", 1, "pastry"),
        ("generated", None, "A strudel."),
        ("generated", None, "Cream."),
    ]
    texts = [segment.text.strip() for segment in found.document.segments if isinstance(segment, TextSegment)]
    assert texts == ["Roll it.", "Bake it well.", "Serve."] and not found.faults
    assert len({each.seed for each in painter.wanted}) == 2


def test_a_marker_of_no_candidate_does_not_name_a_painted_picture():
    found, _ = answered("One. <img2> <img2> Two. <picture>A.</picture>")
    assert shown(found) == [("generated", None, "A.")] and found.faults == {"out of range": 2}
    assert found.document.segments[0].text.split() == ["One.", "Two."]


def test_what_is_refused_surplus_or_no_mark_is_counted():
    found, painter = answered("A. <picture>bad</picture> B. <picture>good</picture> C. <picture>open", max_images=2)
    assert shown(found) == [("generated", None, "good")] and len(painter.wanted) == 2
    assert found.faults == {REFUSED: 1, "picture mark not closed": 1} and "open" in found.document.text
    found, painter = answered("A. <picture>x</picture> B. <picture>y</picture>", max_images=1)
    assert [each.words for each in painter.wanted] == ["x"] and found.faults == {"more pictures than allowed": 1}


def test_the_rules_say_whose_pictures_stand():
    text = "A. <img1> B. <picture>x</picture>"
    found, painter = answered(text, images="given")
    assert shown(found) == [("inserted", 1, "pastry")] and not painter.wanted
    found, _ = answered(text, images="generated")
    assert shown(found) == [("generated", None, "x")] and found.faults == {"out of range": 1}


def test_a_painter_that_fails_is_an_error_that_says_why():
    with pytest.raises(InputError, match="the painter gave no picture: timeout: no answer within 1 s"):
        answered("A. <picture>broken</picture>")
