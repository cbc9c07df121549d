"""The model that comes with limner: by its name, as its docs say, and right."""

import hashlib
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import about, load
from limner.models.checkpoints.hub import PACKAGED, find_checkpoint, packaged
from limner.worlds.picture_stories.figures import score_stories
from limner.worlds.picture_stories.scenes import outlines, parse_scene

DOCS = Path(__file__).resolve().parents[3] / "docs" / "demo.md"


def test_it_is_found_by_its_name_and_a_folder_of_that_name_wins(tmp_path, monkeypatch):
    assert find_checkpoint("demo") == PACKAGED / "demo" and packaged() == ["demo"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert find_checkpoint("demo") == Path("demo")
    with pytest.raises(InputError, match=r"demoo: .*; did you mean demo\?$"):
        find_checkpoint("demoo")
    with pytest.raises(
        InputError, match=r"nosuch: no such folder, and not the name of a repository \(ORG/NAME\), nor demo"
    ):
        find_checkpoint("nosuch")


def test_its_files_are_those_that_the_docs_name():
    text = DOCS.read_text()
    for file in sorted((PACKAGED / "demo").rglob("*.safetensors")):
        assert hashlib.sha256(file.read_bytes()).hexdigest() in text, file


def test_it_writes_and_draws_what_it_is_asked():
    scores = score_stories(load(PACKAGED / "demo"), outlines(1_000_000, 12), 0.0, seed=0)
    assert sum(scores.story_exact) >= 11


def test_the_prompts_that_it_offers_it_answers_rightly():
    said = about(PACKAGED / "demo")
    asked = [example.removeprefix("Illustrate: ").removesuffix(".") for example in said.examples]
    scores = score_stories(
        load(PACKAGED / "demo"), [tuple(map(parse_scene, one.split("; "))) for one in asked], 0.0, seed=0
    )
    assert said.knows and sum(scores.story_exact) == len(asked) == 3


def test_its_memory_is_planned_by_name(limner):
    code, said, _ = limner("plan", "--config", "grpo/tiny", "--model", "demo", "--gpus", "1", "--memory", "8")
    assert code == 0 and "parameters" in said
    code, _, said = limner("plan", "--config", "grpo/tiny", "--model", "no/such/folder", "--gpus", "1", "--memory", "8")
    assert code == 2 and "no such folder" in said
