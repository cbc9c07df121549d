import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.chat.endpoint import Endpoint, EndpointConfig
from limner.models.chat.requests import Reply
from limner.models.documents.candidates import MARKER
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.retrieval.answering import answer, described
from limner.retrieval.index.corpus import Hit, make_chunks
from limner.retrieval.placing import PlacementRules
from limner.retrieval.strategies.asking import AnswerTemplate, Asking, load_template

from ...scripted_server import BROKEN, ScriptedServer, completion, images, texts

STRUDEL = InterleavedDocument(
    (
        TextSegment("Roll out the pastry. Typed by somebody: <img2> and {question}."),
        ImageSegment(Image.new("RGB", (24, 16), "red"), alt="pastry <img1>"),
        TextSegment("Bake it."),
        ImageSegment(Image.new("RGB", (16, 24), "blue")),
    ),
    "strudel.md",
    {"title": "Strudel <img1>"},
)
HITS = [Hit(chunk, 1.0, ("words",)) for chunk in make_chunks(STRUDEL)[0]]


def asked_of(script, question="How is <img1> made?", pixels=False, rules=None, **settings):
    """(the answer, the request's body) of a model behind real HTTP."""
    rules = rules or PlacementRules()
    with ScriptedServer(script) as server:
        config = EndpointConfig(base_url=server.url, model="scripted", retries=0, **settings)
        with Endpoint(config) as model:
            answered = answer(question, HITS, Asking(model, rules, pixels), rules)
        return answered, server.bodies[0]


def test_the_model_writes_and_markers_become_pictures():
    answered, body = asked_of(lambda body: "Roll the pastry. <img1> Bake it until golden. <img2>")
    first, red, second, blue = answered.document.segments
    assert (first.text, second.text.strip()) == ("Roll the pastry.", "Bake it until golden.")
    assert (red.candidate, red.origin, blue.candidate) == (1, "inserted", 2)
    assert not answered.faults
    assert answered.sources[0].chunks == ("strudel.md:0",) and answered.sources[0].pictures == (1, 2)
    assert not images(body)


def test_texts_of_others_hold_no_marker_and_no_place_of_the_prompt():
    _, body = asked_of(lambda body: "Nothing.")
    prompt = texts(body)
    context = prompt.partition("stands there:")[2].partition("You may use")[0].partition("The pictures")[0]
    assert MARKER.findall(context) == ["1", "2"]  # where the two pictures stand
    assert "Typed by somebody: <img 2> and {question}." in context and "[Strudel <img 1>]" in context
    assert "<img1>: pastry <img 1>\n<img2>: (no caption)" in prompt
    assert "How is <img 1> made?" in prompt


def test_pixels_stand_behind_their_markers():
    _, body = asked_of(lambda body: "Bake. <img2>", pixels=True)
    assert [image.size for image in images(body)] == [(24, 16), (16, 24)]
    parts = body["messages"][-1]["content"]
    before = [former["text"] for former, part in zip(parts, parts[1:], strict=False) if part["type"] == "image_url"]
    assert [text[-6:] for text in before] == ["<img1>", "<img2>"]


def test_markers_that_place_nothing_are_counted_and_leave_no_trace():
    reply = "<think>Use <img1>?</think>Roll. <img2> Again <img2>. <img7> [image 1] ![x](http://e.org/x.png) Done."
    answered, _ = asked_of(lambda body: reply)
    assert answered.faults == {"repeated": 1, "out of range": 1, "malformed": 1, "invented": 1}
    assert [image.candidate for image in answered.document.images] == [2]
    assert "img" not in answered.document.text and "http" not in answered.document.text
    assert "Use" not in answered.document.text
    assert answered.document.meta["faults"] == dict(answered.faults)


def test_words_tell_of_each_candidate_or_the_question_is_refused():
    answered, _ = asked_of(lambda body: "Roll. <img1>")
    assert answered.told == {"caption": 1, "place in the text": 1} == answered.document.meta["told"]
    assert "words alone: 1 caption, 1 place in the text" in described(answered)
    seen, _ = asked_of(lambda body: "Roll. <img1>", pixels=True)
    assert not seen.told and "told" not in seen.document.meta
    silent = InterleavedDocument((ImageSegment(Image.new("RGB", (24, 16), "red")),), "album", {"title": "Strudel"})
    hits = [Hit(chunk, 1.0, ("words",)) for chunk in make_chunks(silent)[0]]
    with pytest.raises(InputError, match="1 picture found, without a caption.*--strategy vlm"):
        Asking(None)("How?", hits)  # type: ignore[arg-type]
    assert Asking(None, pixels=True).prepare("How?", hits).candidates  # type: ignore[arg-type]


def test_the_rules_are_told_to_the_model_and_hold_whatever_it_does():
    rules = PlacementRules(max_images=1, sections=["Steps"])
    answered, body = asked_of(lambda body: "Sweet. <img2>\n\n## Steps\nRoll out the pastry. <img1>", rules=rules)
    assert "at most 1 picture." in texts(body) and "## Steps" in texts(body)
    assert [image.candidate for image in answered.document.images] == [1]
    assert answered.removed == {"outside the sections": 1}
    answered, body = asked_of(lambda body: "Roll. <img1>", rules=PlacementRules(images="generated"), pixels=True)
    assert not answered.candidates and not answered.document.images and not images(body)
    assert "(none)" in texts(body) and answered.faults == {"out of range": 1}


@pytest.mark.parametrize("reply, words", [(BROKEN, "server error"), ("", "empty"), ("<think>hm</think>", "empty")])
def test_no_answer_is_an_error_that_says_why(reply, words):
    with pytest.raises(InputError, match=f"the model gave no answer.*{words}"):
        asked_of(lambda body: reply)


def test_a_cut_or_refused_answer_says_so():
    answered, _ = asked_of(lambda body: completion("Roll the", finish="length"))
    assert answered.faults == {"cut at the limit of tokens": 1}
    asking = Asking(model=None)  # type: ignore[arg-type]  # reading asks nobody
    read = asking.read(asking.prepare("How?", HITS), Reply("I cannot help.", "refusal"))
    assert read.faults == {"refused": 1} and read.document.text == "I cannot help."


def test_templates_are_checked(tmp_path):
    assert load_template("answer_llm").identity.startswith("answer_llm.v1@")
    with pytest.raises(InputError, match="no place {answer}"):
        AnswerTemplate("{question} {answer}")
    with pytest.raises(InputError, match="put {question}"):
        AnswerTemplate("{context}")
    with pytest.raises(InputError, match="answer_vlm.v1"):
        load_template("no_such")
    own = tmp_path / "own.yaml"
    own.write_text("prompt: 'Q: {question} {wishes}'\n")
    document = Asking(None, template=load_template(str(own))).prepare("Why?", HITS).request.content  # type: ignore[arg-type]
    assert document.text == "Q: Why?"
