"""The demo: what its folder holds the results of."""

import pytest

from limner.configs.errors import InputError
from limner.studies.demo import DemoConfig, result_settings
from limner.studies.measure import gains
from limner.studies.seed import keep_settings


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
