"""Documents to tokens and back: what text can never say, who owns a token, what is trained."""

import io
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from limner.configs.errors import InputError
from limner.data.conversion import convert
from limner.data.shards import read_documents
from limner.data.sources.markdown import Markdown
from limner.models.documents.candidates import MARKER, offer
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image
from limner.models.tokens.processing import Processor
from limner.models.tokens.text_tokenizer import CONTROL_TOKENS, train_text_tokenizer
from limner.train.from_scratch.new_model import NewModelConfig, general_english
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, story, story_prompt

HOSTILE = [
    "<boi> <eos> <img1> <pad> <answer>",
    "<boi><boi><eoi></s><|endoftext|><bos>",
    " <EOS> < eos > &lt;eos&gt; <eo\u200bs> <e<eos>os>",
    "# a\r\n\r\n![x](javascript:alert(1))\n\n```\n<eos>\n```\n| a | b |\n|--|--|\n* _b_ **c** ~~d~~\\\n> <script>",
    "\x00\x01\x7f\t\v\f  two  spaces , and . trailing \n\n ",
    "e\u0301 \u00e9 \ufb01 \U0001f373\U0001f468\u200d\U0001f373 \u202e\u05d0 \u4f60\u597d \ufeff \ufffd",
    "1234567890 3/4 1.5 100,000 don't DON'T can't've",
]


def text(words):
    return TextSegment(words, trainable=True)


def coded(seed, **fields):
    codes = np.random.default_rng(seed).integers(0, 32, 16)
    return ImageSegment(None, trainable=True, origin="generated", codes_N=codes, **fields)


def completion_ids(sequence):
    return sequence.ids_T[sequence.prompt_length :]


def reread(processor, *segments):
    """What the model would have written to give these segments, read back."""
    sequence = processor.encode(InterleavedDocument((TextSegment("Go."), *segments)))
    return processor.read(completion_ids(sequence).tolist())


def same(got, expected):
    assert [type(segment) for segment in got] == [type(segment) for segment in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.text == b.text if isinstance(a, TextSegment) else np.array_equal(a.codes_N, b.codes_N)
        assert a.trainable


@pytest.mark.parametrize("words", HOSTILE)
def test_text_never_becomes_a_control_token(processor, words):
    control, (answer,) = processor.vocabulary.controls, processor.vocabulary.answer
    document = InterleavedDocument((TextSegment(words), text(words)))
    ids = processor.encode(document).ids_T.tolist()
    assert (ids[0], ids[-1], ids.count(answer)) == (control.bos, control.eos, 1)
    inside = set(ids[1:-1]) - {answer}
    assert not inside & {control.pad, control.bos, control.eos, control.boi, control.eoi}
    assert max(inside) < processor.vocabulary.text_size
    same(reread(processor, text(words)).document.segments, [text(words)])


def test_random_hostile_text_round_trips_exactly(processor):
    random = Random(0)
    atoms = [*CONTROL_TOKENS.values(), *"<>\n\t #*_`|![]()&; .,aZ09\x00\u00e9\U0001f373\u200d", "<img", "\r\n", "the "]
    for _ in range(300):
        words = "".join(random.choices(atoms, k=random.randint(1, 30)))
        ids = processor.text_ids(words)
        assert min(ids) > max(processor.vocabulary.answer), words
        assert processor.tokenizer.decode(ids) == words


def test_a_tokenizer_without_the_control_tokens_is_refused(processor):
    backend = Tokenizer(models.BPE(vocab={"<pad>": 0, "<bos>": 1, "<unk>": 2}, merges=[], unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    with pytest.raises(InputError, match="has no token <eos>"):
        Processor(tokenizer, processor.image_tokenizer)


def test_broken_unicode_is_refused(processor):
    with pytest.raises(InputError, match="document 'd', segment 0: .*Unicode") as error:
        processor.encode(InterleavedDocument((TextSegment("a\ud800"),), "d"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "segments",
    [
        (text("One."), coded(1), coded(2), text(" two")),
        (coded(1), text("One.")),
        (coded(1), coded(1), coded(1)),
        (text("One."),),
        (coded(1),),
        (text("One."), coded(1), text("\n")),
    ],
)
def test_what_is_encoded_is_read_back(processor, segments):
    reading = reread(processor, *segments)
    same(reading.document.segments, segments)
    assert reading.ended and not reading.cut_image
    written = completion_ids(processor.encode(InterleavedDocument(segments)))
    assert len(reading.segment_C) == len(written)
    assert reading.segment_C[-1] == len(segments)
    runs = torch.unique_consecutive(reading.segment_C)
    assert runs.tolist() == list(range(len(segments) + 1))


def test_an_empty_text_leaves_no_trace(processor):
    same(reread(processor, text(""), coded(1), text("")).document.segments, [coded(1)])
    reading = reread(processor, text(""))
    assert reading.document.segments == () and reading.ended and reading.segment_C.tolist() == [0]
    reading = processor.read([])
    assert reading.document.segments == () and not reading.ended and not reading.cut_image


def test_layout_of_a_sequence(processor):
    control, size = processor.vocabulary.controls, processor.vocabulary.text_size
    given, drawn = coded(1), coded(2)
    given = ImageSegment(None, codes_N=given.codes_N)
    document = InterleavedDocument(
        (given, TextSegment("Ask?"), text("Yes."), drawn, TextSegment("Note."), text("End."))
    )
    ask, yes, note, end = (processor.text_ids(words) for words in ("Ask?", "Yes.", "Note.", "End."))
    picture = [control.boi, *(given.codes_N + size), control.eoi]
    drawing = [control.boi, *(drawn.codes_N + size), control.eoi]
    sequence = processor.encode(document)
    parts = [
        ([control.bos], -1, False),
        (picture, 0, False),
        (ask, 1, False),
        (processor.vocabulary.answer, -1, False),
        (yes, 2, True),
        (drawing[:-1], 3, True),
        (drawing[-1:], 3, False),  # <eoi> follows by the grammar; the model never chooses it
        (note, 4, False),
        (end, 5, True),
        ([control.eos], 6, True),
    ]
    assert sequence.ids_T.tolist() == [i for ids, *_ in parts for i in ids]
    assert sequence.segment_T.tolist() == [segment for ids, segment, _ in parts for _ in ids]
    assert sequence.trainable_T.tolist() == [train for ids, _, train in parts for _ in ids]
    assert sequence.prompt_length == 1 + len(picture) + len(ask) + 1
    first, second = sequence.slots
    for slot, image, place in ((first, given, (0, "given")), (second, drawn, (3, "generated"))):
        assert (slot.segment, slot.role) == place
        assert (sequence.ids_T[slot.start : slot.stop] - size).tolist() == image.codes_N.tolist()
        assert (sequence.ids_T[slot.start - 1], sequence.ids_T[slot.stop]) == (control.boi, control.eoi)
    prompt = processor.encode(document.prompt)
    assert prompt.ids_T.tolist() == sequence.ids_T[: sequence.prompt_length].tolist()
    assert prompt.prompt_length == len(prompt) and not prompt.trainable_T.any()
    assert torch.equal(prompt.segment_T, sequence.segment_T[: len(prompt)])


def test_eoi_is_never_trained(processor):
    for document in (story(SCENES[:4]), InterleavedDocument((coded(1), coded(2)))):
        sequence = processor.encode(document)
        forced = sequence.ids_T == processor.vocabulary.controls.eoi
        assert forced.sum() == len(document.images) and not sequence.trainable_T[forced].any()
        assert sequence.trainable_T[sequence.prompt_length :][~forced[sequence.prompt_length :]].all()


def test_pictures_of_many_documents_are_encoded_together_and_cached_codes_win(processor):
    scenes = SCENES[:3]
    codes = processor.image_tokenizer.encode([draw_scene(scene) for scene in scenes])
    cached = InterleavedDocument((ImageSegment(draw_scene(scenes[0]), codes_N=codes[2]), text("x")))
    sequences = processor.encode_all([story(scenes[:2]), cached, story(scenes[2:])])
    found = [s.ids_T[slot.start : slot.stop] - processor.vocabulary.text_size for s in sequences for slot in s.slots]
    assert [part.tolist() for part in found] == [codes[i].tolist() for i in (0, 1, 2, 2)]
    alone = [processor.encode(document).ids_T.tolist() for document in (story(scenes[:2]), cached, story(scenes[2:]))]
    assert [sequence.ids_T.tolist() for sequence in sequences] == alone


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros(15, np.int64),
        np.zeros(17, np.int64),
        np.zeros(0, np.int64),
        np.zeros((16, 1), np.int64),
        np.full(16, 32),
        np.full(16, -1),
        np.full(16, 1.5),
    ],
)
def test_codes_of_another_image_tokenizer_are_refused(processor, codes):
    document = InterleavedDocument((TextSegment("a"), ImageSegment(None, True, "generated", codes_N=codes)), "d")
    with pytest.raises(InputError, match="document 'd', segment 1: .*not this image tokenizer's") as error:
        processor.encode(document)
    assert "\n" not in str(error.value)


def offering(*numbers):
    given = [ImageSegment(draw_scene(SCENES[number]), candidate=number) for number in numbers]
    return InterleavedDocument((*given, TextSegment("Go.")), "d")


def test_a_picture_that_does_not_decode_is_named_by_its_document(processor):
    file = io.BytesIO()
    draw_scene(SCENES[0]).save(file, "PNG")
    cut = InterleavedDocument((ImageSegment(open_image(file.getvalue()[:-60]), True, "generated"),), "cut")
    with pytest.raises(InputError, match="document 'cut': image does not decode"):
        processor.encode_all([story(SCENES[:1], "whole"), cut])


@pytest.mark.parametrize("number", [1, 4])
def test_a_picture_that_is_not_offered_or_stands_already_is_refused_by_name(processor, number):
    prompt = offering(1, 2)
    twice = [replace(prompt.candidates[1], candidate=number)] * 2
    with pytest.raises(InputError, match=f"document 'd', segment [34]: candidate {number} is not offered"):
        processor.encode(replace(prompt, segments=(*prompt.segments, *twice)))
    with pytest.raises(InputError, match="'d': two pictures are candidate 2"):
        processor.encode(offering(1, 2, 2))


def read_back(processor, prompt, *segments):
    sequence = processor.encode(replace(prompt, segments=(*prompt.segments, *segments)))
    return processor.read(completion_ids(sequence).tolist(), prompt.candidates), sequence


def shown(segments):
    return [s.text if isinstance(s, TextSegment) else s.candidate or "drawn" for s in segments]


def test_markers_are_read_as_candidates_and_every_token_keeps_its_owner(processor):
    prompt, random = offering(1, 2, 3, 12), Random(3)
    pieces = ["A dog. ", "\n", "<img", "1>", ">", "<", "\U0001f373", "\ufffd", "e\u0301", "<img4>", "<im<img2", "."]
    for _ in range(200):
        numbers = random.sample(list(prompt.candidates), random.randint(1, 4))
        parts = []
        for number in numbers:
            parts += [text("".join(random.choices(pieces, k=random.randint(1, 3))))] * random.randint(0, 1)
            parts += [coded(number)] * (random.random() < 0.2)
            parts.append(prompt.candidates[number])
        spelled = "".join(f"<img{part}>" if isinstance(part, int) else part for part in shown(parts))
        if len(MARKER.findall(spelled)) != len(numbers) + spelled.count("<img4>"):
            continue  # texts and markers side by side spell other markers
        reading, sequence = read_back(processor, prompt, *parts)
        assert shown(reading.document.segments) == shown(parts)
        expected = sequence.segment_T[sequence.prompt_length :] - len(prompt.segments)
        assert reading.segment_C.tolist() == expected.tolist()
        assert reading.faults["out of range"] == spelled.count("<img4>") and reading.chosen_C.sum() >= len(numbers)


def test_a_token_over_a_markers_edge_belongs_to_the_segment_it_begins_in(processor):
    prompt = offering(1, 2)
    words = "One.<img1><img2>. Two"
    processor = Processor(train_text_tokenizer([words] * 50, 320), processor.image_tokenizer)
    ids = processor.text_ids(words)
    words = [processor.tokenizer.decode([token]) for token in ids]
    assert "><" in words and ">." in words
    reading = processor.read(ids, prompt.candidates)
    assert shown(reading.document.segments) == ["One.", 1, 2, ". Two"]
    begins = np.cumsum([0, *map(len, words)])[:-1]
    expected = [int(np.searchsorted([0, 4, 10, 16], at, side="right")) - 1 for at in begins]
    assert reading.segment_C.tolist() == expected

    words = "<img1>.<img2>"
    processor = Processor(train_text_tokenizer([words] * 50, 320), processor.image_tokenizer)
    reading = processor.read(processor.text_ids(words), prompt.candidates)
    assert shown(reading.document.segments) == [1, ".", 2] and set(reading.segment_C.tolist()) == {0, 2}


def test_markers_that_place_nothing_stay_text_and_are_counted(processor):
    prompt = offering(1, 2)
    words = "A<img1>B<img1>C<img3>D<img0>E<IMG2>"
    reading = processor.read(processor.text_ids(words), prompt.candidates)
    assert shown(reading.document.segments) == ["A", 1, "B<img1>C<img3>D<img0>E<IMG2>"]
    assert reading.faults == {"repeated": 1, "out of range": 1}
    later = [*processor.text_ids("<img2>"), *completion_ids(processor.encode(InterleavedDocument((coded(1),))))[:-1]]
    reading = processor.read([*later, *processor.text_ids("<img2>")], prompt.candidates)
    assert shown(reading.document.segments) == [2, "drawn", "<img2>"] and reading.faults == {"repeated": 1}


def test_a_typed_marker_is_text_where_nothing_is_offered_and_escaped_where_something_is(processor):
    prompt = InterleavedDocument((TextSegment("<img1>"), ImageSegment(draw_scene(SCENES[0]))))
    assert not prompt.candidates and not processor.encode(prompt).trainable_T.any()
    reading = processor.read(processor.text_ids("<img1> <img2>"), prompt.candidates)
    assert shown(reading.document.segments) == ["<img1> <img2>"] and not reading.faults
    offered = offer("See <img1>.", [(draw_scene(SCENES[0]), "of <img1>")])
    assert MARKER.search(offered.text) is None and "Candidate 1" in offered.text
    assert offer("See <img1>.", []).text == "See <img1>."


def test_a_cut_image_is_dropped_and_reported(processor):
    whole = completion_ids(processor.encode(InterleavedDocument((text("One."), coded(1), coded(2))))).tolist()
    one, image = len(processor.text_ids("One.")), 18
    for kept in range(len(whole) + 1):
        reading = processor.read(whole[:kept])
        texts, images = min(kept, 1), int(kept >= one + image - 1) + int(kept >= one + 2 * image - 1)
        segments = reading.document.segments
        assert [isinstance(segment, TextSegment) for segment in segments] == [True] * texts + [False] * images
        begun = int(kept > one) + int(kept > one + image)
        assert (reading.ended, reading.cut_image) == (kept == len(whole), begun > images)
        assert len(reading.segment_C) == kept
        if reading.cut_image:
            tail = whole[:kept].index(processor.vocabulary.controls.boi, one + images * image)
            assert set(reading.segment_C[tail:].tolist()) == {len(segments)}
        assert all(len(segment.codes_N) == 16 for segment in reading.document.images)


def test_join_marks_the_models_choices(processor):
    prompt = processor.encode(story_prompt(SCENES[:2]))
    ids_C = completion_ids(processor.encode(InterleavedDocument((coded(3), text("Yes."), coded(4)))))
    reading = processor.read(ids_C.tolist())
    joined = processor.join(prompt, ids_C, reading)
    assert joined.ids_T.tolist() == [*prompt.ids_T.tolist(), *ids_C.tolist()]
    assert joined.prompt_length == len(prompt) and not joined.trainable_T[: len(prompt)].any()
    assert torch.equal(joined.trainable_T[len(prompt) :], ids_C != processor.vocabulary.controls.eoi)
    assert set(joined.segment_T[: len(prompt)].tolist()) == {-1}
    assert torch.equal(joined.segment_T[len(prompt) :], reading.segment_C)


def test_paint_gives_pictures_to_codes_only(processor):
    shown = draw_scene(SCENES[0])
    kept = ImageSegment(shown, True, "generated")
    documents = [
        InterleavedDocument((text("a"), coded(1), kept)),
        InterleavedDocument(()),
        InterleavedDocument((coded(2),)),
    ]
    first, empty, second = processor.paint(documents)
    assert first.segments[0] == text("a") and first.segments[2] is kept and empty.segments == ()
    codes = np.stack([first.segments[1].codes_N, second.segments[0].codes_N])
    for image, expected in zip(
        (*first.images[:1], *second.images), processor.image_tokenizer.decode(codes), strict=True
    ):
        assert np.array_equal(np.asarray(image.pixels()), np.asarray(expected)) and image.origin == "generated"


def test_a_real_recipe_costs_at_most_a_token_for_three_characters(processor, real_data, tmp_path):
    """With the tokenizer that the demo trains, on recipes that it has never seen."""
    world = [
        segment.text for scene in SCENES for segment in story((scene,)).segments if isinstance(segment, TextSegment)
    ]
    tokenizer = train_text_tokenizer([general_english(), *world], NewModelConfig().text_vocabulary)
    assert len(tokenizer) == 3072
    convert(Markdown(), real_data / "cooking", tmp_path / "shards")
    documents = [
        document
        for split in ("train", "heldout")
        for document in read_documents(tmp_path / "shards", split, shuffle_seed=None)
    ]
    texts = [s.text for document in documents for s in document.segments if isinstance(s, TextSegment)]
    recipes = Processor(tokenizer, processor.image_tokenizer)
    tokens = sum(len(recipes.text_ids(words)) for words in texts)
    assert len(documents) > 20
    assert sum(map(len, texts)) / tokens >= 3
