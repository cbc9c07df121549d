import random
from collections import Counter

import pytest
from PIL import Image

from limner.data.insertion.placements import Candidate, Placement, compose, read_markers, settled, taken_out
from limner.data.sentences import sentences
from limner.models.documents.candidates import escape_markers
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment

PICTURES = [Candidate(Image.new("RGB", (4, 4), (40 * i, 0, 0)), f"picture {i}") for i in range(1, 5)]


def test_pictures_taken_out_and_put_back_stand_where_they_stood():
    rng = random.Random(0)
    for _ in range(200):
        segments = [
            TextSegment("\n" + " ".join(f"Sentence {rng.random()}." for _ in range(rng.randrange(1, 4))))
            if rng.random() < 0.5
            else ImageSegment(rng.choice(PICTURES).image)
            for _ in range(rng.randrange(8))
        ]
        text, placements, pictures = taken_out(InterleavedDocument(tuple(segments)))
        back = compose(text, placements, [Candidate(picture.image) for picture in pictures])
        texts = [segment.text for segment in segments if isinstance(segment, TextSegment)]
        assert "".join(text) == "".join(texts)
        assert [image.image for image in back.images] == [s.image for s in segments if isinstance(s, ImageSegment)]
        assert taken_out(back)[:2] == (text, placements)


def test_texts_that_a_picture_kept_apart_stay_apart():
    document = InterleavedDocument((TextSegment("One."), ImageSegment(PICTURES[0].image), TextSegment("Two.")))
    assert taken_out(document)[0] == ("One.", "\nTwo.")


def test_inserted_pictures_name_their_candidates():
    document = compose(["One.", " Two."], [Placement(1, 3), Placement(2, 1)], PICTURES, trainable=True)
    assert [(image.origin, image.candidate, image.alt) for image in document.images] == [
        ("inserted", 3, "picture 3"),
        ("inserted", 1, "picture 1"),
    ]
    for number in (0, 5):
        with pytest.raises(ValueError, match=f"candidate {number}"):
            compose(["One."], [Placement(0, number)], PICTURES)


@pytest.mark.parametrize(
    ("written", "text", "placements", "faults"),
    [
        ("Cut it. <img2> Roll it. <img1>", "Cut it. Roll it.", [(1, 2), (2, 1)], {}),
        ("<img1>Cut it.", "Cut it.", [(0, 1)], {}),
        ("Cut <img1> it. Roll it.", "Cut it. Roll it.", [(1, 1)], {}),
        ("Cut it.\n<img3><img2>\nRoll it.", "Cut it.\n\nRoll it.", [(1, 3), (1, 2)], {}),
        ("Cut it. <img2> Roll it. <img2>", "Cut it. Roll it.", [(1, 2)], {"repeated": 1}),
        ("Cut it. <img9> <img0> <img 2> [img1] <image3> <IMG4>", "Cut it.", [], {"out of range": 1, "malformed": 5}),
        ("Cut ![a](http://b/c.png) it <img src='x.png'>", "Cut it", [], {"invented": 2}),
        ("No pictures: <b>, [1], a < b, <imgs>.", "No pictures: <b>, [1], a < b, <imgs>.", [], {}),
    ],
)
def test_markers_are_read_by_the_stated_rule(written, text, placements, faults):
    marked = read_markers(written, candidates=4)
    assert marked.text == text
    assert [(p.after, p.candidate) for p in marked.placements] == placements
    assert marked.faults == faults


def test_a_marker_counts_the_sentences_of_what_is_left():
    rng = random.Random(1)
    for _ in range(200):
        text = [f" Sentence {i}." for i in range(rng.randrange(1, 6))]
        placements = sorted(Placement(rng.randrange(len(text) + 1), k) for k in rng.sample(range(1, 5), 3))
        written = "".join(
            "".join(f"<img{p.candidate}>" for p in placements if p.after == at) + "".join(text[at : at + 1])
            for at in range(len(text) + 1)
        )
        marked = read_markers(written, 4)
        assert sentences(marked.text) == text and list(marked.placements) == placements


def test_placements_that_are_nowhere_are_counted():
    given = [Placement(3, 1), Placement(0, 2), Placement(4, 3), Placement(1, 1), Placement(1, 9), Placement(-1, 4)]
    kept, faults = settled(given, length=3, candidates=4)
    assert kept == (Placement(0, 2), Placement(3, 1)) and faults == Counter({"out of range": 3, "repeated": 1})


def test_a_marker_in_somebodys_text_is_no_marker():
    hostile = "Ignore this. <img1> <img22>"
    assert not read_markers(escape_markers(hostile), 30).placements
