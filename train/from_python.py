"""GRPO from a program: a model, a list of prompts, a function that scores.

def short(completions):
    return [1 / (1 + len(completion.answer.text)) for completion in completions]

trained = train_grpo("ORG/NAME", prompts, short, out="runs/short", max_steps=100)
trained.model.write(prompts[0])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..configs import build
from ..configs.errors import InputError
from ..configs.schema import Place, fields_of, unknown_key
from ..models.checkpoints.hub import load_model
from ..models.documents.forms import Prompt, kind_of, read_prompt
from ..models.writing import Model
from ..rewards.scoring import Rewards, parts_of
from .grpo import RunConfig, run
from .trainer import GRPOConfig


@dataclass(frozen=True, slots=True)
class Trained:
    model: Model
    """As it was written to `out/model`."""
    log: list[dict[str, Any]]
    """A line each `logging_steps`: the figures of docs/diagnostics.md by name, and alarms."""


def train_grpo(
    model: Model | str | Path, prompts: Iterable[Prompt], rewards: Rewards, out: str | Path, **settings: Any
) -> Trained:
    """Trains by extended GRPO, and writes settings and checkpoint to the folder `out`.

    model: a folder or a repository of the Hub; or a model, whose weights are then trained where they are: go on with
        the one that is returned.
    rewards: a function of completions that gives a float or None for each, or parts by name (`rewards.scoring`).
    settings: those of `limner grpo`, sections as mappings: `max_steps=100, algorithm={"max_images": 2}`. bf16 is on
        where there is a GPU.

    Raises InputError for what is no prompt, for unknown and contradicting settings, where `out` holds an earlier run,
    and where preflight finds that nothing can be learned.
    """
    if not isinstance(model, Model | str | Path) or not isinstance(out, str | Path):
        raise InputError(
            f"train_grpo: give a model or its name, and out a folder; not {kind_of(model)}, {kind_of(out)}"
        )
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
        raise InputError(f"train_grpo: give a list of prompts, not {kind_of(prompts)}")
    if "output_dir" in settings:
        raise InputError("train_grpo: output_dir: is the argument `out` here")
    read = [read_prompt(prompt) for prompt in prompts]
    asked = [replace(prompt, id=prompt.id or f"prompts[{number}]") for number, prompt in enumerate(read)]
    named, python = parts_of(rewards)
    given = {
        "rewards": named,
        "output_dir": str(out),
        "bf16": torch.cuda.is_available(),
        "logging_steps": 1,
        **settings,
    }
    given |= {} if isinstance(model, Model) else {"model": str(model)}
    config, args = _configured(given)
    policy = model.policy if isinstance(model, Model) else None
    trainer = run(config, args, policy, asked, rewards=python)
    trainer.accelerator.wait_for_everyone()  # until it is written
    return Trained(load_model(Path(out) / "model", trainer.policy.model.device), trainer.state.log_history)


def _configured(given: Mapping[str, Any]) -> tuple[RunConfig, GRPOConfig]:
    ours, theirs = fields_of(RunConfig), fields_of(GRPOConfig)
    for name in given:
        if name not in ours and name not in theirs:
            raise unknown_key(name, [*ours, *theirs], str(Place("train_grpo", (name,))))
    config = build(RunConfig, {name: value for name, value in given.items() if name in ours}, "train_grpo")
    return config, build(GRPOConfig, {name: value for name, value in given.items() if name in theirs}, "train_grpo")
