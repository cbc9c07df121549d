"""The forms of a document and of a prompt, and a sentence for what is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.documents.forms import document, make_prompt, read_answer, read_prompt

RED = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def file(tmp_path) -> Path:
    RED.save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_texts_and_pictures_in_order(file):
    made = document("one", RED, file, TextSegment("two"), answer=["three", RED], id="x", meta={"kind": "interleaved"})
    kinds = [segment.text if isinstance(segment, TextSegment) else segment.origin for segment in made.segments]
    assert kinds == ["one", "given", "given", "two", "three", "generated"] and made.id == "x"
    assert [segment.trainable for segment in made.segments] == [False] * 4 + [True] * 2
    assert all(image.pixels().tobytes() == RED.tobytes() for image in made.images)
    assert InterleavedDocument.from_json(made.to_json()).meta == {"kind": "interleaved"}
    assert document("x", answer="y") == document("x", answer=("y",))
    assert document(answer=RED).completion.images[0].origin == "generated"


def test_every_form_of_one_prompt_is_the_same(file):
    parts = [{"type": "image", "image": str(file)}, {"type": "text", "text": "What is this?"}]
    whole = document(RED, "What is this?", answer="A red square.")
    chat = [{"role": "user", "content": parts}]
    forms = [[RED, "What is this?"], (file, "What is this?"), chat, document(file, "What is this?"), whole]
    asked = [*map(read_prompt, forms), make_prompt("What is this?", [RED]), read_prompt("What is this?", [str(file)])]
    assert len({str(prompt.to_json()) for prompt in asked}) == 1
    assert read_prompt([{"role": "user", "content": "Hello"}]) == read_prompt("Hello") == read_prompt(["Hello"])


def test_an_answer_is_all_to_be_scored_unless_it_says_what_is():
    assert [segment.trainable for segment in read_answer(document("a", RED)).segments] == [True, True]
    assert read_answer(document("a", answer="b")) == read_answer("b") == read_answer(["b"])
    given = ImageSegment(RED)
    assert read_answer(InterleavedDocument((TextSegment("a", True), given))).segments[1] is given


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (None, "a prompt is a text.*not None"),
        (3, "not an int"),
        (RED, "not an Image"),
        ({"role": "user", "content": "x"}, "not a dict"),
        (" ", "empty"),
        ([], "empty"),
        (["", "  "], "empty"),
        (["a", 3], "part 2: an int is neither a text"),
        ([np.zeros((8, 8, 3))], "part 1: a ndarray is neither"),
        ([Path("none.png"), "a"], "none.png: cannot be read: No such file"),
        ([{"role": "user"}], "message 1: expected"),
        (["a", {"role": "user", "content": "x"}], "message 1: expected .* got a str"),
        ([{"role": "system", "content": "Be short."}, {"role": "user", "content": "x"}], "message 1: .*'system'.*put"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "message 2: .*'assistant'"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": "y"}], "message 2: .*one turn of the user"),
        ([{"role": "user", "content": 3}], "message 1: its content is a text or a list of parts, not an int"),
        ([{"role": "user", "content": []}], "empty"),
        ([{"role": "user", "content": ["x"]}], "message 1, part 1: expected .* got a str"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "part 1: expected .* got .*'url'"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "part 1: an int is neither a picture"),
    ],
)
def test_a_sentence_for_what_is_no_prompt(prompt, words):
    with pytest.raises(InputError, match=words) as caught:
        read_prompt(prompt)
    assert "\n" not in str(caught.value)


def test_a_sentence_for_other_wrong_types(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for give, words in (
        (lambda: document("red.png"), r"'red.png' is a text here.*give Path\('red.png'\)"),
        (lambda: document("x", answer=3), "the answer is an int"),
        (lambda: document("x", answer={"a": 1}), "the answer is a dict"),
        (lambda: document("x", answer=["y", None]), "part 2 of the answer: None is neither"),
        (lambda: document("x", id=3), "id is a text"),
        (lambda: document(Path(tmp_path)), "cannot be read"),
        (lambda: read_prompt("x", "red.png"), r"pictures: a list .*one picture is \[picture\]"),
        (lambda: read_prompt(["x"], [file]), "document already"),
        (lambda: make_prompt("x", [3]), "picture 1: an int"),
    ):
        with pytest.raises(InputError, match=words):
            give()
    assert document("blue.png").text == "blue.png"
