"""Keys of the rewards section as limner 0.1 had them: each is one line with the form of now."""

import pytest

from limner.configs import build, parse
from limner.configs.errors import InputError
from limner.configs.registry import entries
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.renamed import new_form

ENDPOINT = {"base_url": "http://localhost:8000/v1", "model": "m"}
ENDPOINTS = "`endpoints: {NAME: {base_url: URL, model: MODEL, ...}}`, and each part names it by `endpoint: NAME`"
ENCODERS = "`encoders: {default: {device: .., dtype: .., batch_size: ..}}`"
KEYS = {
    # a key, its value of before, what is to be written now
    "text_plan": (1.5, ["`rewards: {picture_stories/text_plan: 1.5}`"]),
    "image_plan": (1, ["`rewards: {picture_stories/image_plan: 1}`"]),
    "image_sentence": (0, ["`rewards: {picture_stories/image_sentence: 0}`", "(0 by default: it can go)"]),
    "format_pattern": ("think-vis", ["`rewards: {format: {weight: 1, pattern: think-vis}}`"]),
    "timeout": (60, ["`reward_guard: {timeout: 60}`"]),
    "patience": (5, ["`reward_guard: {calls: 5}`"]),
    "judge": (
        {"weights": {"helpfulness": 2, "text_relevance.v1": 1}, "endpoint": ENDPOINT},
        ["`rewards: {judge/helpfulness: 2, judge/text_relevance.v1: 1}`", ENDPOINTS],
    ),
    "image": (
        {
            "weights": {"clipscore": 1, "siglip2": 0.5},
            "device": "cuda:1",
            "dtype": "bfloat16",
            "models": {"siglip2": "x"},
        },
        [
            "`rewards: {image/clipscore: 1, image/siglip2: 0.5}`",
            ENCODERS,
            "each part names its weights by `model: PLACE`",
        ],
    ),
    "consistency": (
        {"weights": {"dino": 0.25}, "batch_size": 8},
        ["`rewards: {consistency/dino: 0.25}`", ENCODERS],
    ),
    "text": ({"weights": {"rouge_l": 1}}, ["`rewards: {text/rouge_l: 1}`"]),
    "remote": (
        {"url": "http://gpu-2:8400", "weights": {"image_clipscore": 1}},
        ["`rewards: {remote/image_clipscore: 1}`", "each part names it by `url: URL`"],
    ),
    "insertion_stories": (
        {"choice": 2, "image_sentence": 0.5},
        ["`rewards: {insertion_stories/choice: 2, insertion_stories/image_sentence: 0.5}`"],
    ),
}


def refused(action) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_before_shows_the_form_of_now(key):
    value, forms = KEYS[key]
    said = refused(lambda: RewardSettings({"format": 1, key: value}))
    assert said.startswith(f"rewards.{key}: ") and all(form in said for form in forms)
    said = refused(lambda: build(RewardSettings, {"rewards": {key: value}}, "my.yaml"))
    assert said.startswith("my.yaml: ") and all(form in said for form in forms)


@pytest.mark.parametrize("key", ["judge", "image", "consistency", "text", "remote", "insertion_stories"])
def test_a_section_that_was_left_out_has_no_line_now(key):
    """As the resolved configuration of a run has it."""
    assert refused(lambda: RewardSettings({key: None})).startswith(f"rewards.{key}: ")
    assert "delete this" in refused(lambda: RewardSettings({key: None}))
    assert f"{key}/" in refused(lambda: RewardSettings({key: {}})), "one without weights"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        (
            "judge",
            {"weights": {"helpfulness": 1}, "local": {"model": "DIR"}},
            "`endpoints: {NAME: {local: {model: DIR}}}`",
        ),
        ("questions", {"viewer": {"endpoint": ENDPOINT}}, "rewards.questions.viewer: .* is none of `endpoints:`"),
        ("structure", None, "rewards.structure: None is no weight"),
        ("questions", None, "rewards.questions: None is no weight"),
    ],
)
def test_names_that_stayed(key, value, words):
    with pytest.raises(InputError, match=words.replace("{", r"\{").replace("}", r"\}")):
        build_reward(RewardSettings({key: value}))


@pytest.mark.parametrize("flag", ["--rewards.text_plan", "--rewards.text-plan"])
def test_a_flag_of_before(flag):
    said = refused(lambda: parse((RewardSettings,), [flag, "0.5"]))
    assert "text_plan" in said.replace("-", "_") and "picture_stories/text_plan" in said


def test_a_key_that_never_was():
    names = [*entries("reward")]
    for key, value in {"brevity": 1, "judge/helpfulness": None, "my.py:F": 1, "format": 1, "questions": {}}.items():
        assert new_form(key, value, names) == ""


def test_all_keys_of_before_are_told_at_once():
    said = refused(lambda: RewardSettings({"text_plan": 0, "format": 1, "judge": None, "brevty": 1}))
    assert "picture_stories/text_plan" in said and "rewards.judge" in said and "'brevty'" in said
