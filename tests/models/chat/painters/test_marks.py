import random

import pytest

from limner.models.chat.painters.marks import EMPTY, MALFORMED, NOT_CLOSED, Described, read_marks


def test_descriptions_and_texts_come_in_their_order():
    marks = read_marks("Peel it. <picture>A peeled\n apple.</picture> Cut it.<picture>Slices.</picture>")
    assert marks.pieces == ("Peel it. ", Described("A peeled apple."), " Cut it.", Described("Slices."))
    assert not marks.faults
    assert read_marks("").pieces == () and read_marks("No <pictures>.").pieces == ("No <pictures>.",)


@pytest.mark.parametrize(
    "text, words, fault",
    [
        ("a <picture>b <picture>c</picture> d", "a b  d", NOT_CLOSED),
        ("a <picture>b", "a b", NOT_CLOSED),
        ("a <picture>b\n\nc</picture> d", "a b\n\nc d", NOT_CLOSED),
        ("a <picture> \n</picture> b", "a  b", EMPTY),
        ("a </picture> b", "a  b", MALFORMED),
        ("a <Picture>b</picture> c", "a b c", MALFORMED),
        ('a <picture src="x.png"/> b', "a  b", MALFORMED),
        ("a < picture >b", "a b", MALFORMED),
        ("a [picture: a red bicycle] b", "a [picture: a red bicycle] b", MALFORMED),
    ],
)
def test_what_is_no_mark_is_counted_and_its_words_stay(text, words, fault):
    marks = read_marks(text)
    assert "".join(piece for piece in marks.pieces if isinstance(piece, str)) == words
    assert marks.faults[fault] >= 1 and set(marks.faults) <= {fault, MALFORMED}


def test_no_letter_outside_of_tags_is_lost():
    rng = random.Random(0)
    parts = ["<picture>", "</picture>", "<Picture >", "ab", "b ", "\n\n", "<", ">", "picture", "</", "[image: c]"]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randrange(12)))
        marks = read_marks(text)
        left = "".join(piece.words if isinstance(piece, Described) else piece for piece in marks.pieces)
        for letter in "ab":  # of tags and their like there is none
            assert left.count(letter) >= text.count(letter), (text, marks)


def test_time_grows_with_the_text():
    for hostile in ("<picture>" * 20_000, "<picture " * 20_000, "[picture: " * 20_000, "< " * 50_000):
        read_marks(hostile)
