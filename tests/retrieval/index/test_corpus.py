"""Documents to chunks: nothing lost, pictures where they stood; and the three kinds of folders."""

import io
import json

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.data.conversion import convert, fitting_source
from limner.data.sources.markdown import Markdown
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image
from limner.retrieval.index.corpus import (
    CHUNK_TOKENS,
    PIC,
    by_kind,
    content_hash,
    count_tokens,
    make_chunks,
    read_source,
    title_of,
)


def encoded(color="red", form="PNG", size=(8, 6)):
    buffer, image = io.BytesIO(), Image.new("RGB", size, color)
    image.paste("white", (0, 0, 3, 3))  # a picture of one colour is none
    image.save(buffer, form)
    return buffer.getvalue()


def picture(color="red", alt="", form="PNG"):
    return ImageSegment(open_image(encoded(color, form)), alt=alt)


def document(*parts, id="doc", **meta):
    segments = [TextSegment(part) if isinstance(part, str) else part for part in parts]
    return InterleavedDocument(tuple(segments), id, meta)


def words(text):
    return text.replace(PIC, " ").split()


def test_pictures_stand_where_they_stood_with_their_sentences():
    made = document("One. Two.", picture(alt="a cat"), "Three.", picture("blue"), title="Counting")
    (chunk,), problems = make_chunks(made)
    assert not problems
    assert (chunk.id, chunk.document, chunk.title) == ("doc:0", "doc", "Counting")
    assert chunk.text == f"One. Two.\n{PIC}\nThree.\n{PIC}"
    assert [(p.id, p.caption, p.context) for p in chunk.pictures] == [
        ("doc#1", "a cat", "Two. Three."),
        ("doc#2", "", "Three."),
    ]
    assert chunk.pictures[0].data == encoded()  # as it was encoded


def test_chunks_end_with_sentences_and_lose_nothing():
    long = " ".join(f"word{number}" for number in range(700)) + "."
    sentences = [f"Sentence number {number} says a little." for number in range(120)]
    parts = [
        " ".join(sentences[:60]),
        picture(),
        " ".join(sentences[60:]),
        picture("blue"),
        "\n\n" + long,
        picture("green"),
    ]
    chunks, _ = make_chunks(document(*parts))
    assert all(count_tokens(chunk.text.replace(PIC, "")) <= CHUNK_TOKENS for chunk in chunks)
    assert [w for chunk in chunks for w in words(chunk.text)] == words(" ".join(p for p in parts if isinstance(p, str)))
    assert all(chunk.text.count(PIC) == len(chunk.pictures) for chunk in chunks)
    assert [p.id for chunk in chunks for p in chunk.pictures] == ["doc#1", "doc#2", "doc#3"]
    ends = [chunk.text.replace(PIC, "").rstrip()[-1] for chunk in chunks]
    assert ends.count(".") >= len(chunks) - 2  # but for the sentence that is longer than a chunk
    assert all(chunk.text.startswith("Sentence") for chunk in chunks[:4])


def test_tables_and_code_are_not_cut_in_two():
    rows = [f"| step {n} | turn the bolt by {n} degrees, then wait. Look again. |" for n in range(40)]
    table = "\n".join(["| what | how |", "|---|---|", *rows])
    prose = "Turn it. " * 80
    (_, middle, _), _ = make_chunks(document(f"{prose}\n\n{table}\n\n{prose}"))
    assert table in middle.text and count_tokens(table) > 2 * CHUNK_TOKENS
    long = "\n".join(["| what | how |", "|---|---|", *rows * 10])
    parts, _ = make_chunks(document(f"```sh\n{'run it' * 9}\n```\n\n{long}\n\n{prose}"))
    assert len(parts) > 2 and all("| what | how |\n|---|---|\n| step" in part.text for part in parts[1:-1])
    assert "".join(part.text for part in parts).count("| step") == 400
    code = "\n".join(["```sh", *["    run --all"] * 2000, "```"])
    parts, _ = make_chunks(document(code))
    assert len(parts) > 2 and all(part.text.startswith("```sh\n    run") for part in parts)
    assert all(part.text.endswith("\n```") for part in parts)


def test_a_document_without_tables_has_the_hash_of_the_first_chunking():
    """So that an index of limner 0.1 is not written anew."""
    assert content_hash(document("Roll. Bake.")).startswith("0f52cc4cdf839f61")


def test_a_typed_placeholder_is_no_picture():
    made = document(f"Write {PIC} here. {PIC}", picture(), f"<P{PIC}IC>", title="x")
    chunks, _ = make_chunks(made)
    assert sum(chunk.text.count(PIC) for chunk in chunks) == 1 == sum(len(chunk.pictures) for chunk in chunks)
    assert "< PIC>" in chunks[0].text


def test_pictures_alone_and_nothing_at_all():
    (chunk,), _ = make_chunks(document(picture(), picture("blue")))
    assert chunk.text == f"{PIC}\n{PIC}" and len(chunk.pictures) == 2 and chunk.title == "doc"
    assert make_chunks(document(" \n ")) == ([], [])


def test_a_picture_that_does_not_decode_is_a_problem_and_leaves_no_placeholder():
    broken = ImageSegment(open_image(encoded(size=(64, 64))[:-40]), alt="half")
    (chunk,), problems = make_chunks(document("One.", broken, "Two.", picture()))
    assert chunk.text == f"One.\nTwo.\n{PIC}" and [p.id for p in chunk.pictures] == ["doc#2"]
    assert by_kind(problems) == "1 problem (picture 1)" and str(problems[0]).startswith("doc#1: picture: ")


def test_titles():
    assert title_of(document("\n# *Soup*\nBoil.", id="a.md")) == "*Soup*"
    assert title_of(document("x", title="A\n  b")) == "A b"
    assert title_of(document(picture(), id="a.md")) == "a.md"
    assert title_of(document("- Prep time: 10 min\n- Servings: 6\n\n# Strudel\n")) == "Strudel"
    assert title_of(document("## Peeling\n\n# Strudel\n")) == "Strudel"
    assert title_of(document("## Peeling\n\nPeel the apples.\n")) == "Peeling"
    assert title_of(document("- Prep time: 10 min\n", id="a.md")) == "a.md"


def test_text_that_has_no_utf8_and_languages_without_spaces():
    (chunk,), _ = make_chunks(document("a\ud800b", title="\udc00"))
    assert chunk.text == "a?b" and chunk.title == "?"
    assert count_tokens("\u82f9\u679c pie, ok") == 5
    assert count_tokens("x" * 160) == 10


def test_the_content_hash_knows_every_part():
    made = [
        document("One.", picture(alt="a")),
        document("One.", picture(alt="b")),
        document("One.", picture("blue", alt="a")),
        document("One!", picture(alt="a")),
        document("One.", picture(alt="a"), title="other"),
        document(picture(alt="a"), "One."),
    ]
    assert len({content_hash(one) for one in made}) == len(made)
    assert content_hash(made[0]) == content_hash(document("One.", picture(alt="a"), id="elsewhere"))


def site(folder):
    folder.mkdir()
    (folder / "a.png").write_bytes(encoded())
    (folder / "soup.md").write_text("# Soup\n\nBoil it.\n\n![the pot](a.png)\n\n![gone](../secret.png)\n")
    (folder.parent / "secret.png").write_bytes(encoded("blue"))
    (folder / "bad.md").write_bytes(b"\xff")
    return folder


def test_markdown_and_its_shards_give_the_same_chunks(tmp_path):
    source = site(tmp_path / "site")
    convert(Markdown(), source, tmp_path / "shards")
    problems = []
    found = {
        kind: list(read_source(tmp_path / kind, problems if kind == "site" else [])) for kind in ("site", "shards")
    }
    chunks = [[make_chunks(one)[0] for one in documents] for documents in found.values()]
    assert chunks[0] == chunks[1]
    ((chunk,),) = chunks[0]
    assert chunk.document == "soup.md" and chunk.title == "Soup" and chunk.text == f"# Soup\n\nBoil it.\n{PIC}"
    assert chunk.pictures[0].caption == "the pot"
    assert by_kind(problems) == "2 problems (unreadable 1, outside 1)"
    assert fitting_source(source) == "markdown" and fitting_source(tmp_path / "shards") == "shards"


def test_mramg_files_keep_their_picture_ids(tmp_path):
    (tmp_path / "IMAGE/images/RECIPE").mkdir(parents=True)
    (tmp_path / "IMAGE/images_info").mkdir()
    (tmp_path / "IMAGE/images/RECIPE/a.png").write_bytes(encoded())
    listed = {"pie-1": {"image_path": "a.png", "image_caption": "A pie"}, "pie-2": {"image_path": "b.png"}}
    (tmp_path / "IMAGE/images_info/recipe_imgs_collection.json").write_text(json.dumps(listed))
    (tmp_path / "doc_recipe.jsonl").write_text(json.dumps([7, f"Pie. {PIC} Eat.{PIC}", ["pie-1", "pie-2"]]) + "\n")
    problems = []
    assert fitting_source(tmp_path) == "mramg"
    (made,) = read_source(tmp_path, problems)
    (chunk,), _ = make_chunks(made)
    assert (chunk.id, chunk.text) == ("recipe/7:0", f"Pie.\n{PIC}\nEat.")
    assert [p.id for p in chunk.pictures] == made.meta["images"] and chunk.pictures[0].id.endswith("pie-1")
    assert chunk.pictures[0].caption == "A pie"
    assert by_kind(problems) == "1 problem (missing 1)"


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(InputError, match="no source knows"):
        fitting_source(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        list(read_source(tmp_path / "nowhere", []))


def test_real_recipes(real_data):
    problems = []
    documents = list(read_source(real_data / "cooking", problems))
    chunks = [chunk for one in documents for chunk in make_chunks(one)[0]]
    assert len(documents) == 29 and sum(len(chunk.pictures) for chunk in chunks) == 38
    assert by_kind(problems) == "1 problem (duplicate 1)"
    assert max(count_tokens(chunk.text) for chunk in chunks) <= CHUNK_TOKENS + 3 * max(len(c.pictures) for c in chunks)
