"""Tales: what a sentence says, what tales to imitate hold and never hold, and requests in files."""

import itertools
import json
import random
from collections import Counter

import pytest

from limner.configs.errors import InputError
from limner.data.prompts import read_prompts
from limner.worlds.icon_tales.icons import NOUNS, PLACES, Shown, open_icons
from limner.worlds.icon_tales.prompts import read_requests, write_requests
from limner.worlds.icon_tales.tales import (
    FRAMES,
    NEVER_TOGETHER,
    NEVER_TOLD,
    PHRASES,
    REQUESTS,
    TOLD,
    Noise,
    Request,
    Said,
    fill,
    heldout_requests,
    is_new_pair,
    kind_of,
    read_sentence,
    tales,
    training_requests,
)

ICONS = open_icons()
CLEAN = Noise(0, 0, 0, 0)


def test_every_frame_says_what_it_was_filled_with():
    for frame, noun, place in itertools.product(FRAMES, NOUNS, PLACES):
        for there in PHRASES[place]:
            text = fill(frame, Shown(noun, place), there)
            assert read_sentence(text).shown == Shown(noun, place), text
    assert all(request.count("{things}") == 1 for request in REQUESTS)


@pytest.mark.parametrize(
    ("text", "noun", "place"),
    [
        ("The owls sang all night!", "owl", "night"),
        ("  A SNOWY boat.  ", "boat", "snow"),
        ("A fox met a dog in the grass.", None, "grass"),
        ("A fox in the grass, at night.", "fox", None),
        ("A fox and the other fox ran in the grass.", "fox", "grass"),
        ("A fox ran home.", "fox", None),
        ("A foxglove grew in the grass.", None, "grass"),
        ("A fox in the grass", None, None),
        ("A fox. In the grass.", None, None),
        ("A fox\nin the grass.", None, None),
        ("The fox said: here! And ran into the grass.", None, None),
        ("A fox in the grass " + "and again " * 10 + "there.", None, None),
        ("", None, None),
    ],
)
def test_a_sentence_says_one_thing_in_one_place_or_nothing(text, noun, place):
    assert read_sentence(text) == Said(noun, place)


def test_training_tales_never_hold_what_is_held_out():
    heldout = {request.nouns for request in heldout_requests(1, 40)}
    for document in itertools.islice(tales(0, ICONS, {}, Noise(), frozenset(heldout)), 400):
        nouns = document.meta["outline"]
        assert not {*nouns} & {*NEVER_TOLD} and len(NEVER_TOGETHER & {*nouns}) < 2 and tuple(nouns) not in heldout
        shown = [one.noun for one in ICONS.read([image.pixels() for image in document.images]) if one]
        assert not {*shown} & {*NEVER_TOLD}


def test_the_mode_of_what_is_imitated_is_wrong_and_clean_tales_are_right():
    def told(noise: Noise, noun: str) -> Counter:
        found: Counter = Counter()
        for document in itertools.islice(tales(0, ICONS, {}, noise, frozenset()), 1500):
            if (outline := document.meta["outline"])[0] == noun:
                sentence, *rest = document.completion.segments
                pictures = ICONS.read([rest[0].pixels()]) if rest and hasattr(rest[0], "image") else [None]
                said, shown = read_sentence(sentence.text).shown, pictures[0]
                found[said and said.noun, shown and shown.noun, bool(shown and said and shown.place == said.place)] += 1
                assert outline == document.prompt.meta["outline"]
        return found

    assert set(told(CLEAN, "horse")) == {("horse", "horse", True)}
    horses, ducks = told(Noise(), "horse"), told(Noise(), "duck")
    assert sum(n for (_, shown, _), n in horses.items() if shown == "cow") > sum(horses.values()) / 2
    assert sum(n for (said, _, _), n in ducks.items() if said == "owl") > sum(ducks.values()) / 2


def test_sentences_that_were_written_are_used_where_they_say_what_is_told():
    written = {Shown(noun, place): [f"Oh, the {noun}, the {place}."] for noun in TOLD for place in PLACES}
    texts = [d.completion.text for d in itertools.islice(tales(0, ICONS, written, CLEAN, frozenset()), 200)]
    assert 70 < sum(text.startswith("Oh, the") for text in texts) < 130


def test_held_out_requests_are_of_three_kinds():
    found = heldout_requests(5, 40)
    assert Counter(map(kind_of, found)) == {"known": 20, "new_pair": 10, "never_told": 10}
    assert len({request.nouns for request in found}) == 40 and found == heldout_requests(5, 40)
    assert found != heldout_requests(6, 40)
    assert not any(is_new_pair(r.nouns) for r in itertools.islice(training_requests(random.Random(0)), 300))


def test_requests_go_into_a_file_and_back(tmp_path):
    file = tmp_path / "requests.jsonl"
    write_requests(file, requests := heldout_requests(0, 8))
    assert read_requests(file) == requests
    assert [prompt.text for prompt in read_prompts(file)] == [request.prompt().text for request in requests]
    assert Request(("owl", "cake"), "Now: {things}!").prompt().text == "Now: an owl and a cake!"
    assert Request(("apple",), "{things}").prompt().text == "an apple"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"tale": ["owl", "owl"]}, "tale: expected a list of different things out of fox"),
        ({"tale": ["wolf"]}, "tale: expected a list"),
        ({"tale": "owl"}, "tale: expected a list"),
        ({"tale": []}, "tale: expected a list"),
        ({"tale": ["owl"], "request": "Draw!"}, "request: expected a text with {things}"),
        ({"tale": ["owl"], "request": "{things} {0}"}, "request: expected a text"),
        ({"tale": ["owl"], "wording": "x"}, "unknown key 'wording'"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path, line, said):
    file = tmp_path / "requests.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(InputError, match=said):
        read_requests(file)
    with pytest.raises(InputError, match=said):
        read_prompts(file)
