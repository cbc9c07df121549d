"""GRPO from a program: a function as reward, prompts in any form, settings checked like those of the command."""

import pytest
import torch

from limner.configs import read_yaml
from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.models.documents.forms import document
from limner.models.writing import Model
from limner.train.from_python import train_grpo
from limner.worlds.picture_stories.scenes import SCENES, draw_scene

from .runs import Illustrated, parameters

PROMPTS = ["Draw: a circle.", [draw_scene(SCENES[0]), "And this?"], [{"role": "user", "content": "Draw: a square."}]]
QUICK = {
    "max_steps": 1,
    "num_generations": 4,
    "max_completion_length": 200,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "algorithm": {"max_images": 3},
}


def pictures(completions):
    assert all(completion.prompt.id.startswith("prompts[") for completion in completions)
    return [len(completion.answer.images) / 3 for completion in completions]


def test_a_function_and_a_list_of_prompts(make_policy, tmp_path):
    save(make_policy(0), tmp_path / "start")
    trained = train_grpo(str(tmp_path / "start"), iter(PROMPTS), pictures, tmp_path / "run", **QUICK)
    figures = next(line for line in trained.log if "reward" in line)
    assert figures["rewards/pictures"] == pytest.approx(figures["reward"])
    assert not torch.equal(parameters(trained.model.policy), parameters(make_policy(0)))
    saved = read_yaml(tmp_path / "run" / "config.yaml")
    assert (
        saved["model"] == str(tmp_path / "start") and saved["rewards"] == {} and saved["algorithm"]["max_images"] == 3
    )
    assert any(answer.document.segments for answer in trained.model.write("Draw: a circle.", n=4))
    with pytest.raises(InputError, match="holds model of an earlier run"):
        train_grpo(tmp_path / "start", PROMPTS, pictures, tmp_path / "run", **QUICK)


def test_a_loaded_model_and_several_rewards(make_policy, tmp_path):
    model = Model(make_policy(0))
    rewards = {"format": 0.5, "mine": (pictures, 1.0), "each": Illustrated()}
    settings = {**QUICK, "algorithm": {"max_images": 3, "process_weight": 1.0}, "preflight": False}
    trained = train_grpo(model, PROMPTS, rewards, tmp_path / "run", **settings)
    figures = next(line for line in trained.log if "reward" in line)
    assert {"rewards/format", "rewards/mine", "rewards/each"} <= figures.keys()
    assert torch.equal(parameters(model.policy), parameters(trained.model.policy))  # trained where they are, and saved


def test_wrong_arguments_get_a_sentence_before_anything_is_written(make_policy, tmp_path):
    model, out = Model(make_policy(0)), tmp_path / "run"
    for give, words in (
        (lambda: train_grpo(3, PROMPTS, pictures, out), "give a model or its name"),
        (lambda: train_grpo(model, "x", pictures, out), "give a list of prompts, not a str"),
        (lambda: train_grpo(model, ["x", 3], pictures, out), "not an int"),
        (lambda: train_grpo(model, [document()], pictures, None), "out a folder"),
        (lambda: train_grpo(model, PROMPTS, None, out), "rewards: give a function"),
        (lambda: train_grpo(model, PROMPTS, {"formatt": 1}, out), "did you mean format"),
        (
            lambda: train_grpo(model, PROMPTS, pictures, out, max_step=1),
            "max_step: unknown key; did you mean max_steps",
        ),
        (lambda: train_grpo(model, PROMPTS, pictures, out, output_dir="x"), "output_dir: is the argument `out`"),
        (lambda: train_grpo(model, PROMPTS, pictures, out, algorithm={"beta": 1}), "algorithm.beta: expected"),
        (lambda: train_grpo(model, [], pictures, out), "prompts: 0, and one batch of rollouts takes 1"),
        (lambda: train_grpo("none/such/model", PROMPTS, pictures, out), "no such folder"),
    ):
        with pytest.raises(InputError, match=words):
            give()
    assert not out.exists()
