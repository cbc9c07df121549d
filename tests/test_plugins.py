"""The plug-in of docs/plugins.md, as it stands there, from a folder outside the repository."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from limner.cli import run
from limner.configs import registry
from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.report.release.lineage import read_stages
from limner.train.grpo import main as grpo

PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
WISHES = [
    "small red circle top left",
    "big blue square bottom right",
    "small green diamond top right",
    "big red circle",
]
REWARDS = "{my_plugin.py:Blue: {weight: 1, least: 1}}"
FLAGS = [
    *("--model", "model", "--prompts", "wishes.jsonl", "--prompt_form", "my_plugin.py:wish", "--rewards", REWARDS),
    *("--num_generations", "4", "--per_device_train_batch_size", "8", "--steps_per_generation", "1"),
    *("--max_completion_length", "160", "--logging_steps", "1", "--report_to", "none", "--use_cpu", "true"),
    *("--bf16", "false", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant", "--disable_tqdm", "true"),
    *("--rewards.format", "0", "--activation_checkpointing", "false"),
]


@pytest.fixture
def folder(tmp_path, make_policy, monkeypatch):
    """The plug-in, wishes and a checkpoint, and nothing of the repository; the files of other tests are forgotten."""
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.chdir(tmp_path)
    Path("my_plugin.py").write_text(CODE)
    Path("wishes.jsonl").write_text("".join(json.dumps({"draw": [wish]}) + "\n" for wish in WISHES))
    save(make_policy(0), tmp_path / "model")
    return tmp_path


def test_the_page_keeps_its_word():
    assert len(CODE.splitlines()) < 80


def test_a_benchmark_of_ones_own(folder):
    words = ["--data", "wishes.jsonl", "--model", "model", "--out", "out", "--sampling.max_new_tokens", "40"]
    run(["eval", "--benchmark", "my_plugin.py:Blueness", "--options.least", "1", *words])
    results = json.loads(Path("out/results.json").read_text())
    assert 0 <= results["scores"]["blue"]["value"] <= 1 and results["scores"]["blue"]["n"] == len(WISHES)
    assert results["tables"][0]["rows"][0][0] == "blue" and Path("out/report.html").is_file()
    assert list(results["manifest"]["files"]) == ["my_plugin.py"]
    Path("my_plugin.py").write_text(CODE + "\n# other scores?\n")
    registry._files.clear()
    with pytest.raises(InputError, match="other settings|was .* is "):
        run(["eval", "--benchmark", "my_plugin.py:Blueness", "--options.least", "1", *words])
    for option, message in {"leest": "did you mean least", "least x": "expected int"}.items():
        name, _, value = option.partition(" ")
        with pytest.raises(InputError, match=message):
            run(["eval", "--benchmark", "my_plugin.py:Blueness", f"--options.{name}", value or "1", *words])


def test_a_reward_and_a_prompt_form_of_ones_own(folder, capsys):
    words = [*FLAGS, "--output_dir", "run", "--max_steps", "2", "--save_steps", "1"]
    grpo(words)
    assert "reward Blue: mean" in capsys.readouterr().out
    (kept,) = json.loads(Path("run/plugins/plugins.json").read_text())
    assert kept["file"] == "my_plugin.py" and Path("run", kept["copy"]).read_text() == CODE
    (stage,) = read_stages([Path("run")])
    assert stage.plugins == {"my_plugin.py": kept["sha256"]} and stage.prompt_form == "my_plugin.py:wish"

    again = [*words, "--resume_from_checkpoint", "last", "--max_steps", "3"]
    Path("my_plugin.py").write_text(CODE.replace("== 2", "== 1"))
    registry._files.clear()
    with pytest.raises(InputError, match=r"my_plugin.py: has changed since the run began .*put run/plugins/my_plugin"):
        grpo(again)
    Path("my_plugin.py").write_text(Path("run", kept["copy"]).read_text())
    registry._files.clear()
    grpo(again)
    assert Path("run/checkpoint-3").is_dir()


def test_prompts_that_a_form_cannot_read_are_named(folder):
    Path("wishes.jsonl").write_text('{"draw": ["x"]}\n{"drew": ["x"]}\n')
    with pytest.raises(InputError, match=r"wishes.jsonl:2: the form raises KeyError: 'draw'"):
        grpo([*FLAGS, "--output_dir", "run", "--max_steps", "1"])
    with pytest.raises(InputError, match=r"prompt_form: my_plugin.py: has no 'wisch'; did you mean wish"):
        grpo([*FLAGS, "--output_dir", "run", "--max_steps", "1", "--prompt_form", "my_plugin.py:wisch"])


def test_what_came_with_a_checkpoint_names_no_files(folder):
    Path("model/training").mkdir()
    Path("model/training/1-grpo.yaml").write_text(f"rewards: {REWARDS}\n")
    hub = folder / "hub/models--ORG--NAME/snapshots/abc"
    hub.mkdir(parents=True)
    (hub / "mine.yaml").write_text("prompt_form: my_package.forms:Form\n")
    for config, named in (("model/training/1-grpo.yaml", "my_plugin.py:Blue"), (str(hub / "mine.yaml"), "my_package")):
        with pytest.raises(InputError, match=f"names {named}.* may not; .* copy the configuration"):
            grpo(["--config", config, "--model", "model", "--prompts", "wishes.jsonl"])
    assert not registry._files, "it has not even been run"
    settings = json.loads(Path("model/limner.json").read_text())
    Path("model/limner.json").write_text(json.dumps({**settings, "family": "my_plugin.py:Blue"}))
    with pytest.raises(InputError, match="limner.json: my_plugin.py:Blue: what came with a checkpoint may not name"):
        grpo([*FLAGS, "--output_dir", "run", "--max_steps", "1"])


@pytest.mark.slow
def test_the_reward_rises_within_ten_batches(folder):
    """In a process of its own, which knows nothing of the repository but the installed package."""
    command = [sys.executable, "-c", "from limner.cli import main; main()", "grpo", *FLAGS, "--output_dir", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command += [
        "--num_generations",
        "8",
        "--per_device_train_batch_size",
        "32",
        "--max_steps",
        "10",
        "--save_steps",
        "10",
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    state = json.loads(Path("run/checkpoint-10/trainer_state.json").read_text())
    rewards = [line["rewards/Blue"] for line in state["log_history"] if "rewards/Blue" in line]
    assert len(rewards) == 10 and rewards[-1] > rewards[0] + 0.1, rewards
