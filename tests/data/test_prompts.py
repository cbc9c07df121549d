"""Lines of JSONL files."""

import io
import json

import pytest

from limner.configs.errors import InputError
from limner.data.prompts import pack_prompt, read_lines, read_prompts, unpack_prompt
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, open_image
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

BREAKS = "a\u2028b\u2029c\u0085d"
"""Line breaks of Unicode, which JSON lets stand in a string as they are."""


def test_only_a_newline_ends_a_line(tmp_path):
    path = tmp_path / "prompts.jsonl"
    first, second = (json.dumps({"prompt": f"{n} {BREAKS}"}, ensure_ascii=False) for n in (1, 2))
    path.write_bytes(f"{first}\r\n\n{second}\n".encode())
    assert [(place, value["prompt"]) for place, value in read_lines(path)] == [
        (f"{path}:1", f"1 {BREAKS}"),
        (f"{path}:3", f"2 {BREAKS}"),
    ]
    assert [prompt.text for prompt in read_prompts(path)] == [f"1 {BREAKS}", f"2 {BREAKS}"]
    path.write_text(f"{first}\n{second[:-1]}\n", encoding="utf-8")
    with pytest.raises(InputError, match="prompts.jsonl:2: not JSON: Expecting ',' delimiter, at line 3, column 1"):
        read_prompts(path)


def test_a_prompt_whose_picture_is_damaged_is_named():
    file = io.BytesIO()
    draw_scene(SCENES[0]).save(file, "PNG")
    whole, cut = (ImageSegment(open_image(file.getvalue()[:end])) for end in (None, -60))
    question = TextSegment("What is this?")
    assert unpack_prompt(pack_prompt(InterleavedDocument((whole, question), "a"))).text == question.text
    with pytest.raises(InputError, match="prompt 'file.jsonl:9': image does not decode"):
        pack_prompt(InterleavedDocument((cut, question), "file.jsonl:9"))


@pytest.mark.parametrize("name", ["records.json", "records.jsonl"])
@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}\n{"a": 2}\n',
        '{"a": 1},\n{"a": 2},\n',
        '\ufeff[{"a": 1}, {"a": 2}]',
        '[\n {\n  "a": 1\n },\n {\n  "a": 2\n }\n]\n',
        '{\n "a": 1\n}\n{\n "a": 2\n}',
    ],
)
def test_records_are_read_however_they_are_published(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [value for _, value in read_lines(tmp_path / name)] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '[{"a": 1},', '{"a": 1}\n}', "\0", "", "[]", '"\\ud800"']
)
def test_what_is_no_json_is_one_line(tmp_path, text):
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"records.jsonl(:\d)?: (not JSON|no records)"):
        list(read_lines(tmp_path / "records.jsonl"))


def write_prompts(folder, *lines):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_line_may_have_pictures_an_id_and_what_rewards_ask_for(tmp_path):
    (tmp_path / "images").mkdir()
    draw_scene(SCENES[0]).save(tmp_path / "images" / "a.png")
    inline = InterleavedDocument((ImageSegment(draw_scene(SCENES[1])),)).to_json()["segments"][0]["image"]
    first = {"prompt": "What is this?", "image": "images/a.png", "id": 7, "meta": {"reference": "A circle."}}
    path = write_prompts(tmp_path, first, {"prompt": "And these?", "images": ["images/a.png", inline]})
    one, two = read_prompts(path)
    assert (one.id, one.meta, one.text) == ("7", {"reference": "A circle."}, "What is this?")
    assert [type(segment) for segment in one.segments] == [ImageSegment, TextSegment]
    assert two.id == "prompts.jsonl:2" and len(two.images) == 2
    assert [image.pixels().tobytes() for image in two.images] == [draw_scene(SCENES[n]).tobytes() for n in (0, 1)]


FAULTS = {
    "unknown key 'reference'.*into `meta`": {"prompt": "a", "reference": "b"},
    "unknown key 'imags'; known: .* did you mean": {"prompt": "a", "imags": ["a.png"]},
    "outside .*; put it below": {"prompt": "a", "image": "../a.png"},
    "absent.png: cannot be read": {"prompt": "a", "image": "absent.png"},
    "no name of a file": {"prompt": "a", "image": "a\0.png"},
    "a data URI": {"prompt": "a", "image": "data:image/png;base64,AAAA"},
    "`images` a list": {"prompt": "a", "images": "a.png"},
    "give one": {"prompt": "a", "images": [], "image": "a.png"},
    "`prompt` is a list": {"prompt": ["a"]},
    "`meta` is a str": {"prompt": "a", "meta": "b"},
    "`id` is a float": {"prompt": "a", "id": 1.5},
    "unknown key 'meta'": {"outline": ["small red circle top left"], "meta": {}},
    "unknown field 'image'": {"segments": [{"type": "text", "text": "a"}], "image": "a.png"},
    "no form that is known": "a",
}


@pytest.mark.parametrize("words", FAULTS)
def test_what_a_line_says_is_not_lost(tmp_path, words):
    path = write_prompts(tmp_path, {"prompt": "sound"}, FAULTS[words])
    with pytest.raises(InputError, match=f"prompts.jsonl:2: .*{words}"):
        read_prompts(path)
