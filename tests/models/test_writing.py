"""Model: answers, streams, the sampling settings it carries; and models by name."""

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
