"""`limner rate-prompts`: the prompts of a run, answered by the model that it starts from; those that teach are kept.

limner rate-prompts --config grpo/default --model DIR --prompts FILE.jsonl --out RATED
limner grpo --config grpo/default --model DIR --prompts RATED/prompts.jsonl

Model, rewards, temperature, lengths and `num_generations` are those of the run that the same flags start. OUT holds the
kept prompts, and every prompt's scores in ratings.RANK.jsonl; a call that was cut goes on from there, and a call with
other bounds takes the scores that are there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from transformers import TrainerCallback

from ...configs.bounds import Share
from ...configs.errors import InputError
from ...configs.terminal import say
from ...configs.whole import write_atomically
from ...data.prompts import pack_prompt, unpack_prompt
from ...eval.folder import Journal, keep_manifest, read_journals
from ...models.documents.document import InterleavedDocument
from ..objective.difficulty import Verdict, verdict
from ..trainer import InterleavedGRPOTrainer
from .preflight import PreflightDone

RATINGS, KEPT = "ratings", "prompts.jsonl"


@dataclass
class DifficultyConfig:
    out: str = "runs/rated"
    """Folder of the ratings and of the prompts that are kept."""
    lowest: Share = 0.05
    """Mean score of a prompt's answers below which it is left out as too hard."""
    highest: Share = 0.95
    """Mean score above which it is left out as too easy."""

    def __post_init__(self) -> None:
        if self.lowest > self.highest:
            raise InputError(f"lowest, highest: {self.lowest} is above {self.highest}; no prompt would be kept")


class Rating(TrainerCallback):
    """Rates the prompts once the model is prepared, and ends the run before step 0."""

    def __init__(
        self,
        trainer: InterleavedGRPOTrainer,
        config: DifficultyConfig,
        settings: Mapping[str, Any],
    ):
        """settings: all that a score depends on, for the folder's manifest."""
        self.trainer, self.config, self.settings = trainer, config, settings

    def on_train_begin(self, args, state, control, **_):
        out, accelerator = Path(self.config.out), self.trainer.accelerator
        prompts = [unpack_prompt(row["prompt"]) for row in self.trainer.train_dataset]  # type: ignore[union-attr]
        if accelerator.is_main_process:
            keep_manifest(out, self.settings)
        accelerator.wait_for_everyone()
        rate(self.trainer, prompts, out)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            say(write_kept(prompts, self.config), flush=True)
        raise PreflightDone


def rate(trainer: InterleavedGRPOTrainer, prompts: Sequence[InterleavedDocument], out: Path) -> None:
    """Answers and scores the prompts that have no rating yet, this process's share of them.

    An answer's random numbers are of seed and prompt alone, so that neither cuts nor the number of processes matter.
    """
    accelerator, size = trainer.accelerator, trainer.num_generations
    rank, ranks = accelerator.process_index, accelerator.num_processes
    rated = {record["prompt"] for record in read_journals(out, RATINGS)}
    accelerator.wait_for_everyone()  # before any process appends
    left = [number for number in range(len(prompts)) if number not in rated]
    each = max(1, trainer.args.per_device_train_batch_size * (trainer.args.steps_per_generation or 1) // size)
    with Journal(out, RATINGS, rank) as journal:
        for start in range(0, len(left), each * ranks):
            own = left[start : start + each * ranks][rank::ranks]
            rows = [prompt for number in own for prompt in [prompts[number]] * size]
            numbers = [number * size + row for number in own for row in range(size)]
            rollouts = trainer.sample(rows, trainer.args.seed, numbers)  # by all: parameters may be sharded
            outcome = trainer.reward([item.completion for item in rollouts]).outcome
            for place, number in enumerate(own):
                scores = outcome[place * size : (place + 1) * size]
                journal.append({"prompt": number, "id": prompts[number].id, "scores": scores})
            if accelerator.is_main_process:
                say(f"rated {min(start + each * ranks, len(left))} of {len(left)}", flush=True)


def write_kept(prompts: Sequence[InterleavedDocument], config: DifficultyConfig) -> str:
    """Writes the prompts that are kept, in their order; returns the line that says how many, and why others are not.

    A prompt whose answers could not be scored stays: nothing is known of it. Raises InputError where none is left.
    """
    out = Path(config.out)
    scores = {record["prompt"]: record["scores"] for record in read_journals(out, RATINGS)}
    verdicts = [verdict(scores[number], config.lowest, config.highest) for number in range(len(prompts))]
    kept = [prompt for prompt, said in zip(prompts, verdicts, strict=True) if said in ("kept", "not scored")]
    counts = Counter(verdicts)
    line = ", ".join(f"{counts[said]} {said}" for said in get_args(Verdict) if counts[said])
    if not kept:
        raise InputError(f"{out}: {line}, and none is left; widen lowest and highest, or warm the model up longer")
    write_atomically(out / KEPT, "".join(f"{pack_prompt(prompt)}\n" for prompt in kept))
    return f"{line} of {len(prompts)} prompts; wrote {out / KEPT}; next: limner grpo --prompts {out / KEPT} ..."
