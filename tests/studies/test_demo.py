"""The demo: what its folder holds the results of."""

import pytest

from limner.configs.errors import InputError
from limner.studies.demo import DemoConfig, result_settings
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
