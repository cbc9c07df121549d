"""The fast mode of an inserter: a head over the model that scores all (sentence, candidate) pairs, learnt from gold.

for batch of tasks:
    one forward over the prompts                                  retrieval.strategies.inserter.PairScorer
    cross-entropy of each candidate: its gold place, or nowhere

python -m limner.train.inserter.pair_scoring --model DIR --prompts runs/tasks/train.jsonl --out runs/inserter/pairs
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...configs import parse
from ...configs.bounds import Above0, OneOrMore, Seed
from ...configs.errors import InputError, run_or_exit
from ...configs.schema import check_ranges
from ...configs.terminal import say
from ...data.insertion.placements import InsertionTask
from ...data.insertion.tasks import read_tasks
from ...retrieval.strategies.inserter import PairScorer, load_model, save_inserter


@dataclass
class PairScoringConfig:
    model: str = ""
    """Model to start from: a folder, or a name on the Hub."""
    prompts: str = ""
    """Tasks, as `limner data insertion` writes them."""
    out: str = ""
    """Folder to write: the model with its head."""
    steps: OneOrMore = 500
    batch_size: OneOrMore = 8
    learning_rate: Above0 = 1e-4
    rank: OneOrMore = 128
    """Width in which sentences and candidates are compared."""
    frozen: bool = False
    """Train the head alone, on the model as it is."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)


def targets(task: InsertionTask) -> Tensor:
    """The right class of each candidate [N]: 0 nowhere, 1 + `after` else."""
    places = {placement.candidate: placement.after + 1 for placement in task.gold}
    return torch.tensor([places.get(number, 0) for number in range(1, len(task.candidates) + 1)])


def pair_loss(scorer: PairScorer, tasks: Sequence[InsertionTask]) -> Tensor:
    """Mean cross-entropy of the candidates of all tasks; a scalar."""
    losses = [
        nn.functional.nll_loss(scores, targets(task).to(scores.device), reduction="none")
        for scores, task in zip(scorer(tasks), tasks, strict=True)
    ]
    return torch.cat(losses).mean()


def fit(
    parameters: Iterable[nn.Parameter], loss: Callable[[int], Tensor], steps: int, learning_rate: float
) -> list[float]:
    """AdamW on `loss(step)`; a tenth of the steps to warm up, then linear to 0. Returns the losses."""
    trained = [weight for weight in parameters if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    losses = []
    for step in range(steps):
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(value.item())
    return losses


def fit_pairs(scorer: PairScorer, tasks: Sequence[InsertionTask], config: PairScoringConfig) -> list[float]:
    """Trains the scorer on batches drawn from those tasks that have candidates; the losses."""
    rng = random.Random(config.seed)
    usable = [task for task in tasks if task.candidates]
    if not usable:
        raise InputError("prompts: no task has a candidate")
    scorer.model.requires_grad_(not config.frozen)
    scorer.train()
    losses = fit(
        scorer.parameters(),
        lambda _: pair_loss(scorer, rng.choices(usable, k=config.batch_size)),
        config.steps,
        config.learning_rate,
    )
    scorer.eval()
    return losses


def main(argv: Sequence[str] | None = None) -> None:
    (config,) = parse((PairScoringConfig,), argv, prog="python -m limner.train.inserter.pair_scoring")
    if missing := [name for name in ("model", "prompts", "out") if not getattr(config, name)]:
        raise InputError(f"{missing[0]}: missing; give --{missing[0]}")
    tasks = read_tasks(Path(config.prompts))
    model, prompter = load_model(config.model, "float32")
    torch.manual_seed(config.seed)
    scorer = PairScorer.create(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),  # type: ignore[arg-type]
        prompter,
        config.rank,
    )
    losses = fit_pairs(scorer, tasks, config)
    save_inserter(scorer.model, prompter.processor, Path(config.out), scorer.head)
    say(f"{config.out}: loss {losses[0]:.3f} -> {sum(losses[-20:]) / len(losses[-20:]):.3f}")


if __name__ == "__main__":
    run_or_exit(main)
