import json

import pytest
from PIL import Image

from limner.cli import run
from limner.configs.errors import InputError
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.retrieval.index.encoders import Encoders
from limner.retrieval.index.store import Index

from ..scripted_server import ScriptedServer, images, picture
from ..small_chat import save_text_model

RED, BLUE = (Image.new("RGB", (80, 60), colour) for colour in ("red", "blue"))
HOSTILE = "<script>alert(1)</script>"


def document(name: str, *segments: str | Image.Image, caption: str = "") -> InterleavedDocument:
    made = [TextSegment(s) if isinstance(s, str) else ImageSegment(s, alt=caption) for s in segments]
    return InterleavedDocument(tuple(made), name)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    place = tmp_path_factory.mktemp("answer") / "index"
    strudel = document("strudel.md", "Roll out the strudel pastry.", RED, "Bake it.", caption=f"pastry {HOSTILE}")
    soup = document("soup.md", f"Boil the fennel soup. {HOSTILE}", BLUE, "Add salt.")
    Index.create(place, Encoders()).add([strudel, soup])
    return str(place)


def answered(index, question, out, *flags):
    run(["answer", index, question, "--out", str(out), *flags])
    return InterleavedDocument.from_json(json.loads(out.read_text())) if out.suffix == ".json" else out.read_text()


def test_a_question_becomes_a_page_with_sources(index, tmp_path, capsys):
    page = answered(index, "How is strudel pastry made?", tmp_path / "answer.html")
    assert "<h1>How is strudel pastry made?</h1>" in page and "inserted, candidate 1" in page
    assert (
        '<li>Roll out the strudel pastry. Bake it. <span class="where">strudel.md (text, 1 picture)</span></li>' in page
    )
    assert HOSTILE not in page
    assert "1 picture (1 inserted)" in capsys.readouterr().out
    markdown = answered(index, "fennel soup", tmp_path / "soup.md")
    assert "soup_images/1.png" in markdown and HOSTILE not in markdown
    assert (tmp_path / "soup_images" / "1.png").is_file()


def test_a_finished_text_gets_its_pictures(index, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text("Take a strudel pastry.\nRoll out the strudel pastry.\nEat.")
    found = answered(index, "strudel", tmp_path / "a.json", "--text", str(text))
    before, picture, after = found.segments
    assert before.text.endswith("Roll out the strudel pastry.") and after.text.strip() == "Eat."
    assert picture.candidate == 1 and found.meta["sources"][0]["pictures"] == [1]


def test_rules_of_the_command_line_hold(index, tmp_path):
    for flags in (["--max-images", "0"], ["--images", "generated"], ["--sections", "Steps"], ["--min-relevance", "1"]):
        assert not answered(index, "strudel pastry", tmp_path / "a.json", *flags).images, flags
    found = answered(index, "Is salt in strudel?", tmp_path / "a.json", "--documents", "strudel.md", "--hits", "1")
    assert [source["document"] for source in found.meta["sources"]] == ["strudel.md"]


def test_models_behind_an_endpoint_answer(index, tmp_path, capsys):
    with ScriptedServer(lambda body: "Boil it. <img1> Salt it. <img5>") as server:
        endpoint = ["--endpoint.base_url", server.url, "--endpoint.model", "scripted"]
        for strategy, seen in (("llm", 0), ("vlm", 1)):
            flags = ["--strategy", strategy, "--documents", "soup.md", *endpoint]
            found = answered(index, "fennel soup", tmp_path / "a.json", *flags)
            assert [image.candidate for image in found.images] == [1]
            assert len(images(server.bodies[-1])) == seen
            assert "faults: 1 out of range" in capsys.readouterr().out


def test_a_text_model_in_this_process_answers_by_captions_and_cannot_see(index, tmp_path, capsys):
    local = ["--local.model", save_text_model(tmp_path / "llama"), "--local.max_new_tokens", "8"]
    found = answered(
        index, "strudel pastry", tmp_path / "a.json", "--strategy", "llm", "--documents", "strudel.md", *local
    )
    assert found.meta["told"] == {"caption": 1} and "words alone: 1 caption" in capsys.readouterr().out
    with pytest.raises(InputError, match="reads no pictures; --strategy llm"):
        answered(index, "strudel pastry", tmp_path / "b.json", "--strategy", "vlm", *local)


def test_one_model_writes_and_another_paints(index, tmp_path, capsys):
    reply = "Roll it. <img1> Bake it. <picture>A strudel.</picture>"
    red = picture(Image.new("RGB", (8, 8), "red"))
    with ScriptedServer(lambda body: red if "prompt" in body else reply) as server:
        flags = ["--strategy", "pipeline", "--endpoint.base_url", server.url, "--endpoint.model", "writer"]
        painter = ["--painter.endpoint.base_url", server.url, "--painter.endpoint.model", "painter"]
        found = answered(index, "strudel pastry", tmp_path / "a.json", *flags, *painter, "--documents", "strudel.md")
        with pytest.raises(InputError, match="painter: who paints"):
            answered(index, "strudel pastry", tmp_path / "b.json", *flags)
        with pytest.raises(InputError, match="painter: strategy llm has nothing painted"):
            answered(index, "strudel pastry", tmp_path / "b.json", *flags, *painter, "--strategy", "llm")
        with pytest.raises(InputError, match="sampling.top_k: a pipeline"):
            answered(index, "strudel pastry", tmp_path / "b.json", *flags, *painter, "--sampling", "{top_k: 1}")
    assert [(image.origin, image.alt) for image in found.images] == [
        ("inserted", f"pastry {HOSTILE}"),
        ("generated", "A strudel."),
    ]
    assert server.bodies[1]["prompt"] == "A strudel." and "1 inserted, 1 generated" in capsys.readouterr().out


def test_what_nothing_in_the_index_answers_needs_leave(index, tmp_path):
    for words in (["zebra quantum tax salt"], ["strudel pastry", "--min-match", "1.0", "--documents", "soup.md"]):
        with pytest.raises(InputError, match="nothing in the index .*(--min_match|index more documents)"):
            answered(index, *words[:1], tmp_path / "a.json", *words[1:])
    assert "Boil" in answered(index, "zebra quantum tax salt", tmp_path / "a.json", "--min-match", "0").text


def test_errors_say_what_to_do(index, tmp_path):
    out = ["--out", str(tmp_path / "a.html")]
    Index.create(tmp_path / "empty", Encoders())
    (tmp_path / "blank.txt").write_text(" \n")
    for words, message in (
        ([index, "strudel"], "--out answer.html"),
        ([index, "strudel", "--out", "a.pdf"], ".html, .md or .json"),
        ([index, *out], 'DIR "QUESTION"'),
        ([index, " ", *out], "question is empty"),
        ([str(tmp_path / "empty"), "strudel", *out], "the index is empty"),
        ([str(tmp_path / "nowhere"), "strudel", *out], "limner index"),
        ([index, "zzzz qqqq", *out], "nothing in the index fits"),
        ([index, "strudel", *out, "--strategy", "llm"], "--endpoint.base_url"),
        ([index, "strudel", *out, "--strategy", "unified"], "--model DIR"),
        ([index, "strudel", *out, "--strategy", "vlm", "--text", "x"], "writes its own"),
        ([index, "strudel", *out, "--text", str(tmp_path / "blank.txt")], "no answer to illustrate"),
        ([index, "strudel", *out, "--max-images", "-1"], "max.images"),
        ([index, "strudel", *out, "--min-match", "2"], "min.match"),
        ([index, "strudel", *out, "--images", "some"], "choose from 'given', 'generated', 'both'"),
    ):
        with pytest.raises(InputError, match=message.replace("(", "\\(")):
            run(["answer", *words])
    assert not (tmp_path / "a.html").exists()
