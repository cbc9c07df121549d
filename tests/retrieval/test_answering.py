import io
import json
from html.parser import HTMLParser

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, taken_out
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, encode_png
from limner.retrieval.answering import Illustrate, answer, best_match, candidates_of, described, extract, save, to_html
from limner.retrieval.index.corpus import Chunk, Hit, Picture, make_chunks
from limner.retrieval.placing import PlacementRules, open_places, restricted
from limner.retrieval.strategies.rule import RuleInserter

from .small_encoders import Words

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'](javascript:alert(3))"


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (70, 70), colour)


def hits_of(*documents: InterleavedDocument) -> list[Hit]:
    return [Hit(chunk, 1.0, ("words",)) for document in documents for chunk in make_chunks(document)[0]]


def recipe(name: str = "strudel.md", colours: tuple[str, str] = ("red", "blue")) -> InterleavedDocument:
    segments = (
        TextSegment("Strudel is sweet.\n\n## Steps\n\nRoll out the thin pastry."),
        ImageSegment(picture(colours[0]), alt="the pastry"),
        TextSegment("Spread the jam on it.\nBake it until golden."),
        ImageSegment(picture(colours[1]), alt="a golden strudel"),
        TextSegment("Serve it warm."),
    )
    return InterleavedDocument(segments, name, {"title": "Apple strudel"})


def test_the_extract_with_the_rule_gives_a_document_back_as_it_was():
    whole, hits = recipe(), hits_of(recipe())
    answered = answer("How is strudel made?", hits, Illustrate(RuleInserter().place))
    (was, before, _), (now, after, _) = taken_out(whole), taken_out(answered.document)
    assert [text.split() for text in was if text.strip()] == [text.split() for text in now]
    assert after == before
    assert [image.alt for image in answered.document.images] == ["the pastry", "a golden strudel"]
    assert {image.origin for image in answered.document.images} == {"inserted"}
    assert not answered.faults and not answered.removed
    (source,) = answered.sources
    assert (source.document, source.chunks, source.pictures) == ("strudel.md", ("strudel.md:0",), (1, 2))
    assert answered.document.meta["sources"][0]["title"] == "Apple strudel"


def parts_of(name, *texts):
    return [Chunk(f"{name}:{n}", name, name.upper(), text, ()) for n, text in enumerate(texts)]


def test_an_extract_is_of_one_document_without_a_gap():
    first, second, third = parts_of("a", *(f"Part {n}.\n<PIC>\nEnd {n}." for n in range(3)))
    (other,) = parts_of("b", "Elsewhere.")
    assert extract([third, other, first], third) == ("[...]\n\nPart 2.\nEnd 2.", (third,))
    assert extract([first, other, third], first) == ("Part 0.\nEnd 0.\n\n[...]", (first,))
    whole = "Part 0.\nEnd 0.\n\nPart 1.\nEnd 1.\n\nPart 2.\nEnd 2."
    assert extract([third, other, first, second, third], third) == (whole, (first, second, third))


def test_an_extract_grows_to_the_better_side_while_it_is_short():
    parts = parts_of("a", *("word " * 250 for _ in range(4)))
    for better, taken in ((2, parts[1:3]), (0, parts[0:2])):
        text, chunks = extract([parts[1], parts[better], *parts], parts[1])
        assert chunks == tuple(taken)
        assert text.startswith("[...]") == (taken[0] is not parts[0]) and text.endswith("[...]")
    (long,) = parts_of("b", "word " * 900)
    assert extract([long], long) == (long.text.strip(), (long,))


def test_an_extract_reads_its_whole_document_and_shows_its_own_pictures():
    """What was found of it is a part, and pictures of other documents would show something else."""

    def part(id, text, colour, caption):
        shown = Picture(f"{id}#1", encode_png(picture(colour)), caption, text)
        return Chunk(id, id[0], "Strudel", f"{text}\n<PIC>", (shown,))

    first = part("a:0", "Slice the apples.", "red", "sliced apples")
    second = part("a:1", "Bake the strudel.", "blue", "baked strudel")
    other = part("b:0", "Bake the bread.", "green", "baked strudel bread")
    question, hits, place = "How is strudel baked?", [Hit(second, 1.0, ()), Hit(other, 0.5, ())], RuleInserter().place

    found = answer(question, hits, Illustrate(place))
    assert found.document.text.startswith("[...]") and found.sources[0].chunks == ("a:1",)
    assert {candidate.source for candidate in found.candidates} == {"a", "b"}

    own = Illustrate(place, document=lambda name: [first, second], own=True)
    (source,) = answer(question, hits, own).sources
    assert (source.document, source.chunks, source.pictures) == ("a", ("a:0", "a:1"), (1, 2))
    (source,) = answer(question, hits, own, PlacementRules(max_images=1)).sources
    assert len(source.pictures) == 1


def test_only_pictures_that_stand_in_the_extract_are_its_candidates():
    """One of another part of the document, with a caption that fits a title, was placed under the title."""

    def part(number, text, caption):
        shown = Picture(f"a#{number}", encode_png(picture("red" if number else "blue")), caption, text)
        return Chunk(f"a:{number}", "a", "Resonance", f"{text}\n<PIC>", (shown,))

    parts = [part(0, "# Resonance\n" + "The stand holds it. " * 140, "stand"), part(1, "Run. " * 590, "resonance")]
    whole = Illustrate(RuleInserter(PlacementRules(min_relevance=0.01)).place, document=lambda name: parts, own=True)
    answered = answer("How does resonance stand?", [Hit(part, 1.0, ()) for part in parts], whole)
    assert [candidate.id for candidate in answered.candidates] == ["a#0"]


def test_no_picture_stands_within_a_table_or_code():
    table = "| dough | jam |\n|---|---|\n| roll the dough | spread the jam |\n| bake | cool |"
    segments = (
        TextSegment(f"Make it.\n\n{table}\n\n```\nroll\n\nbake\n```\n\nEat it."),
        ImageSegment(picture("red"), alt="bake"),
    )
    lenient = RuleInserter(PlacementRules(min_relevance=0.01))
    whole = InterleavedDocument(segments, "a.md", {"title": "Dough"})
    answered = answer("dough jam", hits_of(whole), Illustrate(lenient.place))
    assert answered.document.images and table in answered.document.text
    assert [
        segment for segment in answered.document.segments if isinstance(segment, TextSegment) and table in segment.text
    ]


def test_a_section_that_the_answer_does_not_have_is_named():
    hits, rules = hits_of(recipe()), PlacementRules(sections=["Nope"])
    answered = answer("How is strudel made?", hits, Illustrate(RuleInserter(rules).place), rules)
    assert answered.faults == {"no section 'Nope'": 1} and not answered.document.images
    assert "1 no section 'Nope'" in described(answered)


def test_equal_pictures_are_one_candidate_and_what_does_not_open_is_counted():
    data = encode_png(picture("red"))

    def chunk(name: str, *pictures: Picture) -> Hit:
        return Hit(Chunk(f"{name}:0", name, name, "<PIC>", pictures), 1.0, ())

    same, again = Picture("a#1", data, "one", "here"), Picture("b#1", data, "two", "there")
    cut = data[: len(data) // 2]
    hits = [chunk("a", same, Picture("a#2", b"no picture", "", "")), chunk("b", again, Picture("b#2", cut, "", "x"))]
    candidates, numbers, faults = candidates_of(hits)
    assert [(c.id, c.caption, c.context, c.source) for c in candidates][0] == ("a#1", "one", "here\nthere", "a")
    assert numbers["a#1"] == numbers["b#1"] == 1 and "a#2" not in numbers and faults == {"unreadable": 1}
    assert len(candidates_of(hits, decode=True)[0]) == 1
    placed = answer("?", hits, Illustrate(RuleInserter(PlacementRules(min_relevance=0.01)).place, "here\nx"))
    assert [image.candidate for image in placed.document.images] == [1] and placed.removed == {"unreadable": 1}


def test_each_rule_takes_out_what_it_forbids_and_says_how_many():
    candidates = tuple(
        Candidate(picture("red"), caption, id=f"d#{n}", source="d")
        for n, caption in enumerate(("apples and pears", "a bicycle", "baking the pears"), 1)
    )

    def inserted(number: int) -> ImageSegment:
        return ImageSegment(picture("red"), origin="inserted", candidate=number)

    document = InterleavedDocument(
        (
            TextSegment("Peel apples and pears."),
            inserted(1),
            inserted(2),
            TextSegment("\n# Steps\nMix.\n## Oven\nBaking the pears."),
            inserted(3),
            ImageSegment(picture("blue"), origin="generated"),
            TextSegment("\n# End\nEat."),
        )
    )

    def left(**rules) -> tuple[list[int | None], dict[str, int]]:
        held, removed = restricted(document, candidates, PlacementRules(**rules))
        assert held.text.split() == document.text.split()
        assert len(held.images) + removed.total() == len(document.images)
        return [image.candidate for image in held.images], dict(removed)

    assert left() == ([1, 2, 3, None], {})
    assert left(images="given") == ([1, 2, 3], {"generated": 1})
    assert left(images="generated") == ([None], {"given": 3})
    assert left(sections=["STEPS"]) == ([3, None], {"outside the sections": 2})
    assert left(sections=["Oven"], images="given") == ([3], {"generated": 1, "outside the sections": 2})
    assert left(min_relevance=0.3) == ([1, 3, None], {"not relevant": 1})
    assert left(max_images=3) == ([1, 3, None], {"too many": 1})
    assert left(max_images=0) == ([], {"too many": 4})
    assert left(sections=["Nowhere"])[1] == {"outside the sections": 4}


def test_a_section_ends_with_the_next_heading_of_its_level():
    text = ["Before.", "\n# A", "\nIn a.", "\n## B", "\nIn b.", "\n# C", "\nIn c."]
    assert open_places(text, ["a"]).tolist() == [False, False, True, True, True, True, False, False]
    assert open_places(text, ["B"]).tolist() == [False, False, False, False, True, True, False, False]
    assert open_places(text, []).all()


@pytest.mark.parametrize(
    "wrong", [{"max_images": -1}, {"min_relevance": 1.5}, {"min_relevance": float("nan")}], ids=lambda wrong: str(wrong)
)
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        PlacementRules(**wrong)


def test_nothing_to_answer_from_is_an_error():
    with pytest.raises(InputError, match="nothing in the index"):
        answer("How?", [], Illustrate(RuleInserter().place))
    with pytest.raises(InputError, match="question is empty"):
        answer(" ", hits_of(recipe()), Illustrate(RuleInserter().place))


def test_the_match_is_of_the_best_chunk_by_words_or_by_meaning():
    other = InterleavedDocument((TextSegment("The cat sat on a mat in the automobile."),), "cat.md")
    hits = hits_of(recipe(), other)
    fit, chunk = best_match("How do you make strudels with golden pastry and zebras?", hits)
    assert fit == pytest.approx(3 / 4) and chunk.document == "strudel.md"
    assert best_match("What is it?", hits)[0] == 1.0 and best_match("Zebra law?", hits)[0] == 0
    fit, chunk = best_match("feline car", hits, Words())  # other words of the same meaning
    assert chunk.document == "cat.md" and fit > 0.4 and best_match("feline car", hits)[0] == 0
    strategy = Illustrate(RuleInserter().place)
    assert answer("feline car", hits, strategy, encoder=Words()).sources
    for given in ({}, {"encoder": Words(), "min_match": 0.9}):
        with pytest.raises(InputError, match="nothing in the index answers 'feline car': the best chunk"):
            answer("feline car", hits, strategy, **given)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_hostile_documents_reach_no_page_as_markup(tmp_path):
    segments = (TextSegment(f"{HOSTILE} Roll the pastry."), ImageSegment(picture("red"), alt=f"pastry {HOSTILE}"))
    hostile = InterleavedDocument(segments, f"{HOSTILE}.md", {"title": f"{HOSTILE}\n\n# Title"})
    strategy = Illustrate(RuleInserter(PlacementRules(min_relevance=0.01)).place)
    answered = answer(f"Pastry {HOSTILE}?", hits_of(hostile), strategy)
    assert answered.document.images and answered.sources and ":0" not in to_html(answered).partition("Sources")[2]
    for name in ("page.html", "page.md", "page.json"):
        save(answered, tmp_path / name)
    page = (tmp_path / "page.html").read_text()
    found = Tags()
    found.feed(page)
    assert "script" not in found.tags and not {name for name in found.attributes if name.startswith("on")}
    assert "&lt;script&gt;" in page and "Content-Security-Policy" in page
    markdown = (tmp_path / "page.md").read_text()
    unescaped = markdown.replace("\\<", "")
    assert "<script" not in unescaped and "<img" not in unescaped and "## Sources\n\n1. " in markdown
    assert "[" not in markdown.partition("## Sources")[2].replace("\\[", "").replace("\\]", "")
    value = json.loads((tmp_path / "page.json").read_text())
    assert InterleavedDocument.from_json(value).meta["sources"][0]["document"] == f"{HOSTILE}.md"
    assert Image.open(io.BytesIO((tmp_path / "page_images" / "1.png").read_bytes())).size == (70, 70)
    with pytest.raises(InputError, match="html"):
        save(answered, tmp_path / "page.pdf")


def test_one_line_says_what_came_of_it():
    hits = hits_of(recipe(), recipe("tart.md", ("green", "yellow")))
    answered = answer("Strudel?", hits, Illustrate(RuleInserter().place), PlacementRules(max_images=1))
    assert described(answered) == "1 picture (1 inserted), 4 candidates, 1 source; taken out by the rules: 1 too many"
