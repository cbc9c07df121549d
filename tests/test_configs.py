"""Every shipped configuration says what it is for and loads."""

from collections.abc import Callable
from pathlib import Path

import pytest

from limner.configs import packaged_names, parse, read_yaml
from limner.configs.errors import InputError

ROOT = Path(__file__).resolve().parents[1] / "configs"


def warmup_dataclasses():
    from transformers import TrainingArguments

    from limner.train.warmup import WarmupConfig

    return WarmupConfig, TrainingArguments


def grpo_dataclasses():
    from limner.train.grpo import GRPOConfig, RunConfig

    return RunConfig, GRPOConfig


def study_dataclasses():
    from limner.studies.config import StudyConfig

    return (StudyConfig,)


def eval_dataclasses():
    from limner.eval.run import EvalConfig

    return (EvalConfig,)


def guard_dataclasses():
    from limner.eval.capabilities import GuardConfig

    return (GuardConfig,)


SCHEMAS: dict[str, Callable[[], tuple[type, ...]]] = {
    "warmup": warmup_dataclasses,
    "grpo": grpo_dataclasses,
    "study": study_dataclasses,
    "eval": eval_dataclasses,
    "guard": guard_dataclasses,
}
"""Folder of configs/ -> the dataclasses its files fill, imported when asked for: `"warmup": warmup_dataclasses`."""
FLAGS: dict[str, list[str]] = {
    "eval": ["--model", "DIR", "--data", "FILE"],
    "eval/capabilities": ["--model", "DIR"],
    "eval/mramg": ["--data", "DIR"],
    "eval/pipeline": [],
    "guard": ["--before", "DIR", "--after", "DIR"],
    "grpo": ["--use_cpu", "true", "--bf16", "false"],
}
"""Folder, or file, -> flags that let it load where there is no GPU: `["--use_cpu", "--bf16", "false"]`."""
FOREIGN = ("accelerate",)
"""Folders whose files other tools read."""
LABELS = ("Command:", "Time:", "Metric:")
"""What the opening comment says: how to run it, how long that takes, what number to expect."""


@pytest.mark.parametrize("name", packaged_names() or [pytest.param("", marks=pytest.mark.skip(reason="none yet"))])
def test_shipped_configuration(name):
    path = ROOT / f"{name}.yaml"
    folder = name.partition("/")[0]
    assert read_yaml(path)
    opening = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    comment = "\n".join(line for line in opening if line.startswith("#"))
    assert opening[0].startswith("#"), f"{name}: begins without a comment"
    if folder not in FOREIGN:
        missing = [label for label in LABELS if label not in comment]
        assert not missing, f"{name}: the opening comment lacks {', '.join(missing)}"
        assert folder in SCHEMAS or folder == "model", f"{name}: nothing reads {folder}/"
        if folder != "model":
            flags = FLAGS.get(name, FLAGS.get(folder, []))
            assert parse(SCHEMAS[folder](), ["--config", name, *flags])


@pytest.mark.parametrize("name", [name for name in packaged_names() if name.startswith("model/")])
def test_a_models_settings_are_those_of_its_commands(name):
    """One file for a base model: what warm-up and what GRPO starts from, in the order in which they run."""
    sections = read_yaml(ROOT / f"{name}.yaml")
    assert list(sections) == ["warmup", "grpo"]
    model = name.removeprefix("model/")
    starts = {"warmup": f"runs/{model}", "grpo": f"runs/{model}-warmup/model"}
    for section in sections:
        config, args = parse(SCHEMAS[section](), ["--config", name, "--use_cpu", "true"], section=section)
        assert config.model == starts[section] and args.output_dir == f"runs/{model}-{section}"
    config.algorithm.check(args)


def test_a_file_of_sections_holds_nothing_else(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("warmup: {model: a}\ngrpo: {model: b}\nmodel: c\n")
    with pytest.raises(InputError, match="mine.yaml.*model"):
        parse(SCHEMAS["grpo"](), ["--config", str(file)], section="grpo")
    file.write_text("grpo: [1]\n")
    with pytest.raises(InputError, match="grpo is no section"):
        parse(SCHEMAS["grpo"](), ["--config", str(file)], section="grpo")


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """Encoders are named and not loaded; what else is to be made appears in a folder of its own."""
    from limner.rewards.encoders import consistency, image_text, text

    monkeypatch.setattr(image_text, "LOADERS", dict.fromkeys(image_text.LOADERS, lambda *_: None))
    monkeypatch.setattr(consistency.ImageEncoder, "load", lambda name, *_: consistency.PRESETS[name])
    presets = {name: (lambda *_: None, against) for name, (_, against) in text.PRESETS.items()}
    monkeypatch.setattr(text, "PRESETS", presets)
    monkeypatch.chdir(tmp_path)


def parts_of(config) -> dict[str, float]:
    """The parts of a run's reward with their weights, each made of its options."""
    from limner.rewards.build import build_reward

    reward = build_reward(config)
    asked = [vars(guard.reward.score) for guard in reward.guards if hasattr(guard.reward.score, "__dict__")]
    models = {id(model): model for given in asked for model in given.values() if hasattr(model, "as_completed")}
    for model in models.values():
        model.close()
    assert len(models) == len(config.endpoints), "who is named is asked, and once"
    return {guard.name: weight for guard, weight in reward.parts}


REWARDED = [
    (name, section)
    for name in packaged_names()
    for section, settings in [
        (None, read_yaml(ROOT / f"{name}.yaml")),
        ("grpo", read_yaml(ROOT / f"{name}.yaml").get("grpo")),
    ]
    if name.startswith(("grpo/", "model/")) and "rewards" in (settings or {})
]


@pytest.mark.parametrize(("name", "section"), REWARDED)
def test_rewards_of_a_shipped_configuration_can_be_made(name, section, no_weights):
    """Each name is found, its options are right, and whom it asks is there."""
    config, _ = parse(SCHEMAS["grpo"](), ["--config", name, *FLAGS["grpo"]], section=section)
    weighed = [value if isinstance(value, int | float) else value.get("weight", 1) for value in config.rewards.values()]
    assert [*parts_of(config).values()] == [float(weight) for weight in weighed if weight]


def test_rewards_stand_where_they_are_read():
    assert {name.partition("/")[0] for name, _ in REWARDED} == {"grpo", "model"}
    for name in packaged_names():
        inserts = "task: insertion" in (ROOT / f"{name}.yaml").read_text()  # its rewards are its own
        if name.startswith(("grpo/", "model/")) and not inserts:
            assert name in dict(REWARDED), f"{name}: names no rewards"


@pytest.mark.parametrize("name", [name for name in packaged_names() if name.startswith("study/")])
def test_rewards_of_a_shipped_study_can_be_made(name, tmp_path, no_weights):
    from limner.studies.arms import grpo_settings
    from limner.studies.config import flags

    (config,) = parse(SCHEMAS["study"](), ["--config", name])
    for arm in (arm for arm in config.arms.values() if arm.kind == "grpo"):
        run, _ = grpo_settings(config.subject, tmp_path, tmp_path, 0, flags({**config.grpo, **arm.grpo}))
        assert "format" in parts_of(run) and len(parts_of(run)) == sum(map(bool, run.rewards.values()))
