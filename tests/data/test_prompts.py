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
    with pytest.raises(InputError, match="prompts.jsonl:2: not JSON"):
        read_prompts(path)


def test_a_prompt_whose_picture_is_damaged_is_named():
    file = io.BytesIO()
    draw_scene(SCENES[0]).save(file, "PNG")
    whole, cut = (ImageSegment(open_image(file.getvalue()[:end])) for end in (None, -60))
    question = TextSegment("What is this?")
    assert unpack_prompt(pack_prompt(InterleavedDocument((whole, question), "a"))).text == question.text
    with pytest.raises(InputError, match="prompt 'file.jsonl:9': image does not decode"):
        pack_prompt(InterleavedDocument((cut, question), "file.jsonl:9"))
