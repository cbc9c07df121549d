from types import SimpleNamespace

from PIL import Image

from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.sampler.generation import Sampling
from limner.models.writing import Answer, Model
from limner.retrieval.answering import answer
from limner.retrieval.index.corpus import Hit, make_chunks
from limner.retrieval.placing import PlacementRules
from limner.retrieval.strategies.asking import load_template
from limner.retrieval.strategies.unified import Unified

SOURCE = InterleavedDocument(
    (TextSegment("A red square <img1>."), ImageSegment(Image.new("RGB", (32, 32), "red"), alt="a red square")), "red.md"
)
HITS = [Hit(chunk, 1.0, ("words",)) for chunk in make_chunks(SOURCE)[0]]


class Scripted:
    """Stands in for a trained model: keeps what it was asked, and says what it is told to."""

    sampling = Sampling(max_images=4)

    def __init__(self, *segments):
        self.segments, self.asked = segments, []

    def write(self, prompt, **changes):
        self.asked.append(SimpleNamespace(prompt=prompt, changes=changes))
        return Answer(InterleavedDocument(self.segments), ended=True, cut_image=False)


def test_one_stream_inserts_and_draws():
    drawn = ImageSegment(Image.new("RGB", (32, 32), "blue"), True, "generated")
    inserted = ImageSegment(Image.new("RGB", (32, 32), "red"), True, "inserted", candidate=1)
    model = Scripted(
        TextSegment("Red. ", True), inserted, TextSegment("Blue. <img 1> [image 2]", True), drawn, TextSegment("<img9>")
    )
    answered = answer("Which squares?", HITS, Unified(model))
    (asked,) = model.asked
    assert [image.candidate for image in asked.prompt.images] == [1] and asked.changes["max_images"] == 4
    assert "<img 1>" in asked.prompt.text and asked.prompt.text.endswith("Which squares?")
    assert [image.origin for image in answered.document.images] == ["inserted", "generated"]
    assert answered.faults == {"malformed": 2}  # the marker out of range is the model's reader's to count
    assert "img" not in answered.document.text and answered.sources[0].pictures == (1,)


def test_the_rules_limit_what_is_offered_and_drawn():
    question = load_template("unified_question")
    for rules, offered, most in (
        (PlacementRules(images="given"), 1, 0),
        (PlacementRules(images="generated"), 0, 4),
        (PlacementRules(max_images=2), 1, 2),
    ):
        model = Scripted(TextSegment("Red. <img1>", True))
        answered = answer("Which?", HITS, Unified(model, rules, question), rules)
        (asked,) = model.asked
        assert (len(asked.prompt.images), asked.changes["max_images"]) == (offered, most)
        assert answered.faults == ({} if offered else {"out of range": 1})


def test_a_real_policy_answers(make_policy):
    rules = PlacementRules(images="given")
    strategy = Unified(Model(make_policy()), rules, load_template("unified_question"), {"max_new_tokens": 40})
    answered = answer("Illustrate: small red circle.", HITS, strategy, rules, min_match=0)
    assert not [image for image in answered.document.images if image.origin == "generated"]
    assert [candidate.source for candidate in answered.candidates] == ["red.md"]
