"""The demo: what its folder holds the results of."""

import subprocess

import pytest

from limner.configs.errors import InputError
from limner.studies.built import built
from limner.studies.demo import DemoConfig, result_settings, untrained_lengths
from limner.studies.measure import gains
from limner.studies.seed import keep_settings
from limner.worlds.picture_stories.scenes import SCENES


def test_results_of_other_packaged_settings_are_refused(tmp_path, monkeypatch):
    kept, config = tmp_path / "settings.json", DemoConfig(grpo={"learning_rate": 1e-5})
    keep_settings(kept, result_settings(config, 0))
    keep_settings(kept, result_settings(DemoConfig(arms="all", grpo={"learning_rate": 1e-5, "report_to": "none"}), 0))
    with pytest.raises(InputError, match=r"other settings \(grpo\)"):
        keep_settings(kept, result_settings(DemoConfig(), 0))
    monkeypatch.setattr("limner.studies.config.read_yaml", lambda path: {"learning_rate": 1.0})
    with pytest.raises(InputError, match=r"other settings \(grpo, warmup\)"):
        keep_settings(kept, result_settings(config, 0))


def test_a_gain_over_seeds_is_taken_item_by_item():
    items = [
        {arm: {f"{way}.story_exact": [score] * 20 for way in ("sampled", "greedy")} for arm, score in of.items()}
        for of in ({"warmup": 0.0, "best": 1.0}, {"warmup": 0.5, "best": 1.0})
    ]
    sampled, greedy = gains(items, "best")
    assert (sampled["against"], sampled["metric"], sampled["seeds"]) == ("warmup", "sampled.story_exact", 2)
    assert sampled["value"] == greedy["value"] == 0.75 and (sampled["lowest"], sampled["highest"]) == (0.5, 1.0)
    assert sampled["low"] == 0.5 and sampled["high"] == 1.0


def test_lengths_that_were_never_trained_are_named():
    assert untrained_lengths([SCENES[:2], SCENES[:4]]) == ""
    said = untrained_lengths([SCENES[:1], SCENES[:3], SCENES[:5], SCENES[1:2]])
    assert said.startswith("3 of 4 outlines have") and "(2 of 1, 1 of 5)" in said and "know 2 to 4" in said


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path):
    alone = built(tmp_path)
    assert "commit" not in alone, "not that of a folder above"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "a").write_text("1")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    kept = built(tmp_path)
    assert kept.startswith(f"{alone}, commit ") and not kept.endswith("changes")
    (tmp_path / "a").write_text("2")
    assert built(tmp_path) == f"{kept} and changes"
