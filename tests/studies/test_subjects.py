"""What a study is of: a study of icon tales has its own settings, data and rewards, on the same machine."""

import json
from dataclasses import asdict

import pytest

from limner.configs import build
from limner.configs.errors import InputError
from limner.studies import study
from limner.studies.arms import grpo_settings, warmup_settings
from limner.studies.config import StudyConfig, arm_settings, check, shared_settings
from limner.studies.subjects import IconTales, PictureStories
from limner.worlds.icon_tales import figures, kept, prepare, written
from limner.worlds.icon_tales.prepare import TalesConfig

from ..tiny_gguf import tiny_llama, write_gguf

ARMS = {
    "warmup": {"kind": "warmup"},
    "grpo": {},
    "without": {"kind": "mixture", "mixture": {"kept": 0}},
    "cold": {"kind": "measure", "of": "warmup", "temperature": 0.5},
}
TABLES = [{"title": "All", "rows": [{"arm": name} for name in ARMS]}]


def config(**changes) -> StudyConfig:
    mapping = {"title": "Tales", "arms": ARMS, "tables": TABLES, "tales": {}, "seeds": 1}
    return build(StudyConfig, {**mapping, **changes}, "test")


def test_the_file_says_what_the_study_is_of():
    tales, shapes = config(), config(tales=None, arms={"warmup": {"kind": "warmup"}}, tables=[])
    assert isinstance(tales.subject, IconTales) and isinstance(shapes.subject, PictureStories)
    check(tales)
    check(shapes)
    settings = shared_settings(tales, 0)
    assert settings["tales"] == asdict(TalesConfig()) and settings["warmup"]["bf16"] is True and "world" not in settings
    assert shared_settings(shapes, 0)["warmup"]["max_steps"] == 900


def test_data_and_rewards_are_those_of_the_seeds_folder(tmp_path):
    subject = config(tales={"icons": "mine"}).subject
    warmup, _ = warmup_settings(subject, tmp_path, tmp_path, 0, [], {"kept": 0})
    assert {source.path: source.weight for source in warmup.sources} == {
        str(tmp_path / "data" / "interleaved"): 8,
        str(tmp_path / "data" / "text_to_image"): 4,
    }
    grpo, _ = grpo_settings(subject, tmp_path, tmp_path, 0, ["--rewards", "{icon_tales/fluency: {weight: 0.5}}"])
    assert grpo.rewards["icon_tales/fluency"] == {"weight": 0.5, "model": str(tmp_path / "new_model")}
    assert grpo.rewards["icon_tales/image_sentence"] == {"weight": 1, "icons": "mine"}
    assert [source.path for source in grpo.algorithm.replay.sources] == [
        str(tmp_path / "data" / "text_to_image"),
        str(tmp_path / "data" / "kept"),
    ]
    without, _ = grpo_settings(subject, tmp_path, tmp_path, 0, ["--rewards", "{icon_tales/fluency: 0}"])
    assert not without.rewards["icon_tales/fluency"]


def test_arms_depend_on_mixture_and_temperature():
    one = config()
    assert arm_settings(one, "without")["mixture"] == {"kept": 0}
    assert arm_settings(one, "cold")["temperature"] == 0.5 and "temperature" not in arm_settings(one, "warmup")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world": {"heldout_prompts": 5}}, "tales: a study of icon tales has no world of shapes"),
        ({"arms": {**ARMS, "x": {"kind": "mixture", "mixture": {"keep": 0}}}}, "arms.x.mixture: 'keep' is none of"),
        ({"arms": {**ARMS, "x": {"mixture": {"kept": 0}}}}, "arms.x.mixture: an arm of the kind grpo"),
        ({"arms": {**ARMS, "x": {"temperature": 0.5}}}, "arms.x.temperature: an arm of the kind grpo"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(changes, said):
    with pytest.raises(InputError, match=said):
        check(config(**changes))


@pytest.mark.slow
def test_the_whole_road_of_a_released_model(tmp_path, monkeypatch):
    """A tiny model in a GGUF file: converted, warmed up, reinforced, measured, and its tables written."""
    for module, name, value in (
        (prepare, "LEAST_RECOGNISED", 0.0),
        (written, "SENTENCE_TOKENS", 3),
        (kept, "ANSWER_TOKENS", 2),
        (kept, "PASSAGE_WORDS", 2),
        (figures, "TALE_TOKENS", 24),
    ):
        monkeypatch.setattr(module, name, value)
    model = tiny_llama()
    model.config.max_position_embeddings = 1024
    tokenizer = {"image_size": 64, "patch": 16, "codes": 64, "code_size": 8, "channels": [8], "autoencoder_steps": 2}
    tales = {
        **{"base": str(write_gguf(tmp_path / "tiny.gguf", model)), "heldout_prompts": 8, "train_prompts": 10},
        **{"interleaved": 20, "text_to_image": 12, "sentences": 1, "kept": 60, "bf16": False},
        "image_tokenizer": {**tokenizer, "quantised_steps": 1, "decoder_steps": 1},
    }
    small = {"max_steps": 2, "bf16": False, "report_to": "none"}
    grpo = {"bf16": False, "report_to": "none", "max_completion_length": 24, "num_generations": 2}
    sizes = {"per_device_train_batch_size": 4, "steps_per_generation": 1, "gradient_accumulation_steps": 1}
    found = study.run(
        config(
            out=str(tmp_path / "run"), tales=tales, warmup=small, grpo={**grpo, **sizes}, iterations=1, curve_prompts=2
        )
    )
    assert not found["missing"]
    result = json.loads((tmp_path / "run/seed-0/arms/grpo/result.json").read_text())
    assert {len(rows) for name, rows in result["items"].items() if name.endswith(".story_exact")} == {8}
    assert len(result["items"]["kept.right"]) == 100 and len(result["items"]["sampled.story_exact_new_pair"]) == 2
    assert "English, nats a token" in (tmp_path / "run/table.md").read_text()
    assert (tmp_path / "run/seed-0/arms/grpo/model/model.safetensors").is_file()
