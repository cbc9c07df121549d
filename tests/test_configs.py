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
