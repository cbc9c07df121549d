"""Model: answers, streams, the sampling settings it carries; and models by name."""

from itertools import groupby

import pytest
import torch
from PIL import Image

import limner
from limner.configs.errors import InputError
from limner.models import writing
from limner.models.checkpoints.folder import load, save
from limner.models.checkpoints.hub import load_model
from limner.models.documents.candidates import offer
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.documents.rendering import to_html, to_markdown
from limner.models.sampler.generation import Sample, Sampling
from limner.models.writing import DEFAULTS, Model, default_sampling, set_default_sampling
from limner.worlds.picture_stories.scenes import SCENES, draw_scene


@pytest.fixture(scope="module")
def model(make_policy) -> Model:
    return Model(make_policy(0))


def drained(running):
    """The parts of a stream, and the answer it returns."""
    parts = []
    while True:
        try:
            parts.append(next(running))
        except StopIteration as stop:
            return parts, stop.value


def played(monkeypatch, model, tokens):
    monkeypatch.setattr(writing, "stream", lambda *_: iter(tokens))
    return drained(model.stream("x"))


def test_a_stream_is_what_write_gives(model):
    kinds = set()
    for seed, limit in enumerate((5, 10, 15, 20, 25, 30, 60)):
        answer = model.write("Draw: a red circle", seed=seed, max_new_tokens=limit)
        parts, streamed = drained(model.stream("Draw: a red circle", seed=seed, max_new_tokens=limit))
        assert streamed.document.to_json() == answer.document.to_json()
        assert (streamed.ended, streamed.cut_image) == (answer.ended, answer.cut_image)
        said = "".join(part for part in parts if isinstance(part, str))
        assert said == "".join(s.text for s in answer.document.segments if isinstance(s, TextSegment))
        assert [part for part in parts if not isinstance(part, str)] == list(streamed.document.images)
        kinds |= {"ended" if answer.ended else "limit", "cut" if answer.cut_image else "whole", *map(type, parts)}
    assert kinds >= {"ended", "limit", "cut", "whole", str, ImageSegment}, "no seed reaches some case"


def test_no_prompt_and_no_answer_goes_beyond_the_positions(make_policy):
    """With fewer positions than the model has, so that they end within an answer that is known."""
    policy = make_policy(0)
    drawn = (Model(policy).write("Draw: a red circle", max_new_tokens=40, seed=seed) for seed in range(50))
    seed, whole = next((seed, one) for seed, one in enumerate(drawn) if one.ids_C is not None and len(one.ids_C) > 10)
    asked = policy.processor.length_of(whole.prompt)
    assert asked == len(policy.processor.encode(whole.prompt)) and whole.ids_C is not None
    policy.model.config.get_text_config().max_position_embeddings = asked + 10
    answer = Model(policy).write("Draw: a red circle", max_new_tokens=40, seed=seed)
    assert answer.ids_C is not None and answer.ids_C.equal(whole.ids_C[:10]) and not answer.ended
    _, streamed = drained(Model(policy).stream("Draw: a red circle", max_new_tokens=40, seed=seed))
    assert streamed.document.to_json() == answer.document.to_json()
    words = rf"the prompt has [\d,]+ tokens, and the model {asked + 10} positions"
    for ask in (lambda: Model(policy).write("a" * 900), lambda: drained(Model(policy).stream("a" * 900))):
        with pytest.raises(InputError, match=words):
            ask()


def test_pieces_of_a_stream_are_whole_characters_and_early(monkeypatch, model):
    processor, control = model.policy.processor, model.policy.vocabulary.controls
    word = processor.text_ids("A \U0001f58b drawn \u00e9")
    bad = processor.text_ids("\U0001f58b")[:2]  # bytes that never become a character
    code = model.policy.vocabulary.text_size
    image = [control.boi, *[code] * model.policy.vocabulary.image_length, control.eoi]
    parts, answer = played(monkeypatch, model, [*word, *image, *bad, control.eos])
    pieces = [part for part in parts if isinstance(part, str)]
    first = parts.index(next(part for part in parts if not isinstance(part, str)))
    assert "".join(pieces[:first]) == "A \U0001f58b drawn \u00e9" and first > 2
    assert not any("\ufffd" in piece for piece in pieces[:first])
    assert "\ufffd" in "".join(pieces[first:])  # what is really broken is shown at the end of its text, not lost
    assert answer.ended and len(answer.images) == 1


def test_a_picture_comes_with_its_last_code(monkeypatch, model):
    control, length = model.policy.vocabulary.controls, model.policy.vocabulary.image_length
    codes = [control.boi, *[model.policy.vocabulary.text_size] * length]
    assert len(played(monkeypatch, model, codes)[0]) == 1
    parts, answer = played(monkeypatch, model, codes[:-1])
    assert not parts and answer.cut_image and not answer.ended


def test_a_stream_inserts_candidates_and_never_says_half_a_marker(monkeypatch, model):
    processor, control = model.policy.processor, model.policy.vocabulary.controls
    prompt = offer("Go.", [(draw_scene(SCENES[n]), f"scene {n}") for n in (0, 5)])
    drawn = [control.boi, *[model.policy.vocabulary.text_size] * model.policy.vocabulary.image_length, control.eoi]
    words = ["One.<img2> Two<imgs <img7>", " <img2><img1>. 1 < 2 <im"]
    tokens = [*processor.text_ids(words[0]), *drawn, *processor.text_ids(words[1]), control.eos]
    monkeypatch.setattr(writing, "stream", lambda *_: iter(tokens))
    parts, answer = drained(model.stream(prompt))
    told = []
    for part in parts:
        told.append(part if isinstance(part, str) else f"|{part.origin} {part.candidate}|")
    expected = "One.|inserted 2| Two<imgs <img7>|generated None| <img2>|inserted 1|. 1 < 2 <im"
    assert "".join(told) == expected and answer.faults == {"out of range": 1, "repeated": 1} and answer.ended
    assert [part for part in parts if not isinstance(part, str)] == list(answer.document.images)
    assert answer.images[0].tobytes() == draw_scene(SCENES[5]).tobytes()
    assert len(parts) > 10, "text comes as it is written"

    # What `write` reads from the same ids.
    ids = torch.tensor(tokens)
    monkeypatch.setattr(writing, "generate", lambda *_, **__: [Sample(ids, torch.zeros(len(ids)))])
    written = model.write(prompt)
    assert written.document.to_json() == answer.document.to_json() and written.faults == answer.faults
    page = to_html(written.prompt + written.document)
    assert page.count("given, candidate") == 2 and page.count("inserted, candidate 2") == 1
    assert "scene 5 (candidate 2)" in to_markdown(written.document)


def test_answers_do_not_depend_on_the_batch(model):
    prompts = ["Draw: a red circle", InterleavedDocument((TextSegment("Draw: a blue square"),)), "Draw: a triangle"]
    together = model.write_many(prompts, max_new_tokens=30)
    apart = model.write_many(prompts, max_new_tokens=30, batch_size=1)
    assert [a.document.to_json() for a in together] == [a.document.to_json() for a in apart]
    assert together[1].prompt == prompts[1] and together[0].prompt.text == prompts[0]


def test_pictures_before_a_prompt(model, tmp_path):
    picture = draw_scene(SCENES[0])
    picture.save(tmp_path / "a.png")
    by_file = model.write("What is this?", [tmp_path / "a.png"], max_new_tokens=12)
    by_pixels = model.write("What is this?", [picture], max_new_tokens=12)
    assert by_file.document.to_json() == by_pixels.document.to_json() and len(by_file.prompt.images) == 1
    with pytest.raises(InputError, match="none.png"):
        model.write("What is this?", [str(tmp_path / "none.png")])
    with pytest.raises(InputError, match="document already"):
        model.write(by_file.prompt, [picture])


def test_faults_come_before_the_first_token(model):
    with pytest.raises(InputError, match="temprature.*temperature"):
        model.stream("x", temprature=1)
    with pytest.raises(InputError, match="empty"):
        model.stream(" ")


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=77, temperature=0.5, top_k=9, top_p=0.8, max_images=3, guidance=2.5),
        Sampling(max_new_tokens=5, temperature=0.0, max_images=None),
        DEFAULTS,
    ],
)
def test_a_checkpoint_carries_its_sampling_settings(make_policy, tmp_path, sampling):
    policy = make_policy(0)
    assert default_sampling(policy) == DEFAULTS
    set_default_sampling(policy, sampling)
    save(policy, tmp_path / "model")
    assert default_sampling(load(tmp_path / "model")) == sampling


def test_three_lines(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "model")
    model = limner.load(tmp_path / "model", device="cpu")
    for name in ("crane.html", "crane.md", "crane.json"):
        model.write("How do I fold a crane?", max_new_tokens=40).save(tmp_path / name)
        assert "fold a crane" in (tmp_path / name).read_text()


def test_what_is_no_model(tmp_path):
    for name, words in ((tmp_path / "none", "no such folder"), ("a/b/c", "no such folder"), (tmp_path, "limner.json")):
        with pytest.raises(InputError, match=words):
            load_model(name)
    with pytest.raises(InputError, match="revision"):
        load_model(tmp_path, revision="main")
    with pytest.raises(AttributeError, match="lead"):
        limner.lead  # noqa: B018


def test_pixels_of_a_broken_picture(model):
    class Broken(Image.Image):
        def load(self):
            raise OSError("truncated")

    with pytest.raises(InputError, match="picture 1"):
        model.write("x", [Broken()])


def test_several_answers_share_their_prefill(monkeypatch, model):
    calls = []

    def counted(policy, prompts, sampling, sizes, rows):
        calls.append((len(prompts), sizes, [*rows]))
        return generate(policy, prompts, sampling, sizes, rows)

    generate = writing.generate
    monkeypatch.setattr(writing, "generate", counted)
    answers = model.write("Draw: ", n=3, max_new_tokens=30)
    assert calls == [(1, [3], [0, 1, 2])]
    assert len({str(answer.document.to_json()) for answer in answers}) == 3
    alone = model.write("Draw: ", max_new_tokens=30)
    assert answers[0].document.to_json() == alone.document.to_json() and len(model.write("x", n=1)) == 1
    for size in (1, 4, 16):
        pairs = model.write_many(["Draw: ", "Describe the picture."], n=3, batch_size=size, max_new_tokens=30)
        assert [len(group) for group in pairs] == [3, 3]
        assert [a.document.to_json() for a in pairs[0]] == [a.document.to_json() for a in answers]
    assert calls[-1] == (2, [3, 3], [0, 1, 2, 3, 4, 5])


def test_an_answer_ends_before_a_stop_string(model):
    stopped = 0
    for seed in range(12):
        plain = model.write("Draw: ", n=3, seed=seed, max_new_tokens=40)
        texts = [s.text for answer in plain for s in answer.document.segments if isinstance(s, TextSegment)]
        words = [text[len(text) // 2 :][:2] for text in texts if len(text) > 4][:2] or ["nowhere"]
        answers = model.write("Draw: ", n=3, seed=seed, max_new_tokens=40, stop=words)
        for before, after in zip(plain, answers, strict=True):
            segments, kept = before.document.segments, after.document.segments
            assert after.text in before.text or not after.text
            if not any(
                word in segment.text for segment in segments if isinstance(segment, TextSegment) for word in words
            ):
                assert after.document.to_json() == before.document.to_json() and after.ended == before.ended
                continue
            stopped += 1
            assert after.ended and not after.cut_image and len(kept) <= len(segments)
            assert not any(
                word in segment.text for segment in kept if isinstance(segment, TextSegment) for word in words
            )
            assert torch.equal(after.ids_C, before.ids_C[: len(after.ids_C)])
            assert model.policy.processor.read(after.ids_C.tolist()).document.text != after.text
        parts, streamed = drained(model.stream("Draw: ", seed=seed, max_new_tokens=40, stop=words))
        first = model.write("Draw: ", seed=seed, max_new_tokens=40, stop=words)
        for one in (streamed, first):
            assert one.document.to_json() == answers[0].document.to_json() and torch.equal(one.ids_C, answers[0].ids_C)
            assert (one.ended, one.cut_image, one.faults) == (answers[0].ended, answers[0].cut_image, answers[0].faults)
        said = "".join(part for part in parts if isinstance(part, str))
        assert said == "".join(s.text for s in streamed.document.segments if isinstance(s, TextSegment))
        assert [part for part in parts if not isinstance(part, str)] == list(streamed.document.images)
    assert stopped > 5, "no seed reaches a stop string"


@pytest.mark.parametrize(
    ("words", "stop", "said"),
    [
        ("One. Two. Three.", [". T"], ["One"]),
        ("One. Two.", ["Two", "One. Tw"], []),
        ("A \U0001f58b drawn", ["\U0001f58b"], ["A "]),
        ("See <img1> and <image", ["<im"], ["See ", 1, " and "]),
        ("See <img1> and <im", ["<im"], ["See ", 1, " and "]),
        ("See <img1>.", ["img", "1>"], ["See ", 1, "."]),
        ("<img1> x <img1> y", ["<img"], [1, " x "]),
    ],
)
def test_stop_strings_beside_markers(monkeypatch, model, words, stop, said):
    processor, control = model.policy.processor, model.policy.vocabulary.controls
    prompt = offer("Go.", [(draw_scene(SCENES[0]), "scene")])
    tokens = [*processor.text_ids(words), control.boi, *[model.policy.vocabulary.text_size] * 9]
    drawn = iter(tokens)
    monkeypatch.setattr(writing, "stream", lambda *_: drawn)
    parts, answer = drained(model.stream(prompt, stop=stop))
    told = [part if isinstance(part, str) else part.candidate for part in parts]
    joined = []
    for kind, run in groupby(told, key=type):
        same = [*run]
        joined += ["".join(same)] if kind is str else same
    ids = torch.tensor(tokens)
    monkeypatch.setattr(writing, "generate", lambda *_, **__: [Sample(ids, torch.zeros(len(ids)))])
    (written,) = model.write(prompt, n=1, stop=stop)
    assert written.document.to_json() == answer.document.to_json() and torch.equal(written.ids_C, answer.ids_C)
    assert (written.ended, written.faults) == (answer.ended, answer.faults)
    if said[-1:] == ["."]:  # nothing stops it but the picture
        assert not answer.ended and answer.cut_image
    else:
        assert answer.ended and [*drawn], "a stream draws no further"
    assert joined == said


def test_prompts_in_the_form_of_a_chat(model):
    picture = draw_scene(SCENES[0])
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
    chat = model.write([{"role": "user", "content": parts}], max_new_tokens=12)
    listed = model.write([picture, "What is this?"], max_new_tokens=12)
    before = model.write("What is this?", [picture], max_new_tokens=12)
    assert chat.document.to_json() == listed.document.to_json() == before.document.to_json()


def test_wrong_types_get_a_sentence(model):
    for give, words in (
        (lambda: model.write(None), "a prompt is"),
        (lambda: model.write("x", n=0), "n: a whole number from 1 on, not 0"),
        (lambda: model.write("x", n="2"), "n: a whole number"),
        (lambda: model.write("x", n=True), "n: a whole number"),
        (lambda: model.write("x", stop=3), "stop: a text"),
        (lambda: model.write("x", stop=["a", ""]), "stop: a text"),
        (lambda: model.write("x", temperature="hot"), "temperature: expected float, got 'hot'"),
        (lambda: model.write("x", max_new_tokens=2.5), "max_new_tokens: expected int"),
        (lambda: model.write("x", seed=-1), "seed: expected a number 0 to"),
        (lambda: model.write_many("x"), "give a list of prompts, not a str"),
        (lambda: model.write_many(3), "give a list of prompts, not an int"),
        (lambda: model.write_many(["x"], batch_size=0), "batch_size"),
        (lambda: model.write_many(["x", 3]), "not an int"),
        (lambda: model.stream("x", stop=3), "stop"),
        (lambda: model.write("x", max_new_tokens=5).save(3), "name a file that ends in .html"),
    ):
        with pytest.raises(InputError, match=words):
            give()
