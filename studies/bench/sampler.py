"""What sampling costs: limner beside transformers' `generate`, and beside a bare loop over the model.

    limner      models.sampler.generation.generate, the group sharing its prompt
    unbatched   transformers' generate, document by document and segment by segment, its cache kept
    batched     the same for all documents together: a segment waits for its last row, the prefix is computed again
    ceiling     the stock decoder with transformers' static cache and the head rows needed, fed fixed ids

limner bench sampler [--json FILE]

Documents have three steps, a text and a picture each. The sampler writes them first; the others write the same ids.
Beside it: how often the host waits for the device in a step, and what refilled slots gain on waves (`slots`).
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.cache_utils import Cache
from transformers.utils.logging import disable_progress_bar

from ...configs.bounds import OneOrMore, Seed
from ...configs.errors import InputError, run_or_exit
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import Sampling, generate
from ...models.tokens.sequence import TokenSequence
from ...worlds.picture_stories.scenes import outlines, story_prompt
from ..seed import limit_threads, say
from .baselines import Baseline, columns, run_ceiling, write_batched, write_unbatched
from .clock import cuda_peak_bytes, device, now
from .command import bench
from .models import MODELS
from .slots import count_waits, refilled_and_waves, waits

STEPS = 3
GOALS = {"unbatched": 3.0, "batched": 1.5, "ceiling": 0.8}
"""Tokens a second of the sampler over those of each."""
CERTAIN = 1e4
"""A score that leaves the others no chance."""


@dataclass
class BenchConfig:
    models: list[str] = field(default_factory=lambda: list(MODELS))
    groups: list[int] = field(default_factory=lambda: [8, 32])
    """Completions of the one prompt."""
    turns: OneOrMore | None = None
    """Timed runs of each contender; by default those of the model."""
    text_tokens: OneOrMore = 16
    """Mean length of a text; a text may be twice as long."""
    seed: Seed = 0
    json: str | None = None
    """File for the figures."""

    def check(self) -> None:
        """Raises InputError for an unknown model or a size below 1."""
        if unknown := [name for name in self.models if name not in MODELS]:
            raise InputError(f"models: {unknown[0]!r} is not known; known: {', '.join(MODELS)}")
        turns = 1 if self.turns is None else self.turns
        sizes = {"groups": min(self.groups, default=0), "turns": turns, "text_tokens": self.text_tokens}
        if wrong := [name for name, size in sizes.items() if size < 1]:
            raise InputError(f"{wrong[0]}: {sizes[wrong[0]]}; at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "sampler", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    """All rows; the figures as `--json` writes them."""
    config.check()
    limit_threads()
    disable_progress_bar()
    rows = []
    for name in config.models:
        model = MODELS[name]
        policy = model.make()
        policy.model.to(device()).eval()  # type: ignore[arg-type]
        baseline = model.baseline(policy)
        prompt = policy.processor.encode(story_prompt(outlines(config.seed, 1)[0]))
        turns, most = config.turns or model.turns, max(config.groups)
        waited, refilled = waits(policy, prompt, most), refilled_and_waves(policy, prompt, most, turns)
        sampling = Sampling(Steps(policy, prompt, config.text_tokens).limit, max_images=STEPS, seed=config.seed)
        for group in config.groups:
            say(f"{name}, group of {group}")
            row = {"model": name, "group": group, "parameters": policy.model.num_parameters()}
            row |= {"waits": waited, "unequal_lengths": refilled}
            rows.append(row | measure(policy, baseline, prompt, sampling, group, turns))
    return {
        "rows": rows,
        "settings": {
            **asdict(config),
            **{"steps": STEPS, "device": device(), "threads": torch.get_num_threads()},
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }


class Steps:
    """Makes an untrained policy write documents of three steps, a text and a picture, and then end.

    Only the scores of `<boi>` and `<eos>` are set, so that the sampler draws as ever: picture k opens at a place drawn
    uniformly from its own window, and rows are in different modalities at the same time.
    """

    def __init__(self, policy: UnifiedPolicy, prompt: TokenSequence, text_tokens: int):
        self.stock_hidden, self.stock_logits = policy.hidden, policy.allowed_text_logits
        device, period = policy.model.device, text_tokens + 1 + len(policy.vocabulary.image)
        self.limit = STEPS * period + text_tokens // 2
        """No document is longer, `<eos>` included."""
        with torch.no_grad():
            order = torch.arange(len(prompt), device=device)
            mask = (order[:, None] >= order)[None, None]
            hidden = policy.hidden(prompt.ids_T[None].to(device), order[None], mask, None)[:, -1]
            level = policy.allowed_text_logits(hidden, order[:1], STEPS).logsumexp(-1).item()
        scores = torch.full((self.limit, STEPS + 1, 2), -math.inf)  # step, images before, `<boi>` and `<eos>`
        scores[:, STEPS, 1] = CERTAIN
        for picture in range(STEPS):
            end = text_tokens // 2 + picture * period + text_tokens
            for left in range(1, text_tokens + 1):  # a chance of one in `left`, against all other ids together
                odds = -math.log(left - 1) if left > 1 else CERTAIN
                scores[end - left, picture, 0] = level + odds
        self.scores = scores.to(device)
        self.ends = torch.tensor([policy.vocabulary.controls.boi, policy.vocabulary.controls.eos], device=device)
        self.step = 0
        policy.hidden, policy.allowed_text_logits = self.hidden, self.allowed_text_logits  # type: ignore[method-assign]

    def hidden(self, ids_BT: Tensor, positions_BT: Tensor, mask: Tensor, cache: Cache | None, *features: Any) -> Tensor:
        self.step = 0 if ids_BT.shape[1] > 1 else self.step + 1
        return self.stock_hidden(ids_BT, positions_BT, mask, cache, *features)

    def allowed_text_logits(self, hidden: Tensor, images_before: Tensor, max_images: int | None) -> Tensor:
        scores = self.stock_logits(hidden, images_before, max_images)
        return scores.index_copy_(1, self.ends, self.scores[self.step].index_select(0, images_before))


def measure(
    policy: UnifiedPolicy, baseline: Baseline, prompt: TokenSequence, sampling: Sampling, group: int, turns: int
) -> dict[str, Any]:
    """One row: rates, their ratios turn by turn, peaks of memory."""
    documents: list[Tensor] = []

    def write(rows: Sequence[Tensor]) -> None:
        written = [sample.ids_C.to(baseline.device) for sample in generate(policy, [prompt], sampling, group)]
        if rows and not all(torch.equal(a, b) for a, b in zip(written, rows, strict=True)):
            raise RuntimeError("the sampler wrote other documents than before")
        documents[:] = written

    # The first run of each contender shows its peak, and is its warm-up.
    peaks = {"limner": peak_bytes(lambda: write([]))}
    if any(ids_C[-1] != policy.vocabulary.controls.eos for ids_C in documents):
        raise RuntimeError(f"a document did not end within {sampling.max_new_tokens} tokens")
    fed, prompt_T = columns(documents, policy.vocabulary), prompt.ids_T.to(baseline.device)
    contenders: dict[str, Callable[[Sequence[Tensor]], None]] = {
        "limner": write,
        "unbatched": lambda rows: write_unbatched(baseline, prompt_T, rows),
        "batched": lambda rows: write_batched(baseline, prompt_T, rows),
        "ceiling": lambda _: run_ceiling(baseline, prompt_T, fed),
    }
    for name, shown in {"unbatched": [max(documents, key=len)], "batched": documents, "ceiling": documents}.items():
        peaks[name] = peak_bytes(partial(contenders[name], shown))
    longest = max(map(len, documents))
    waited = {name: count_waits(partial(contenders[name], documents)) / longest for name in ("limner", "batched")}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        names = list(contenders)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # Taken one by one, one document shows the rate; it is another in each turn.
            rows = [documents[turn % group]] if name == "unbatched" else documents
            started, cpu_started = now(), time.process_time()
            contenders[name](rows)
            seconds, cpu_seconds = now() - started, time.process_time() - cpu_started
            tokens = sum(map(len, rows))
            rates[name].append(tokens / seconds)
            cpu[name].append(tokens / cpu_seconds)
    return {
        "tokens": sum(map(len, documents)),
        "tokens_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "limner_over": {name: paired_ratio(rates["limner"], rates[name]) for name in GOALS},
        "limner_over_cpu": {name: paired_ratio(cpu["limner"], cpu[name]) for name in GOALS},
        "peak_bytes": peaks,
        "waits_a_step": waited,
        "turns": rates,
        "cpu_turns": cpu,
    }


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of the ratios turn by turn."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def spread(ratios: Sequence[float]) -> dict[str, float]:
    return {"value": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make while it is entered, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        inputs = None
        for output in _tensors((outputs,)):
            key = (storage := output.untyped_storage())._cdata
            if key in self.known:
                continue
            if inputs is None:
                inputs = {
                    tensor.untyped_storage()._cdata for tensor in _tensors((args, tuple((kwargs or {}).values())))
                }
            if key not in inputs:  # else it is a view of what was there before
                self._count(storage, key)
        return outputs

    def _count(self, storage: torch.UntypedStorage, key: int) -> None:
        size = storage.nbytes()

        def forget() -> None:
            self.live -= size
            self.known.discard(key)

        self.known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, forget)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def peak_bytes(work: Callable[[], Any]) -> int:
    """Largest sum of tensors alive at once, beyond those alive before: the allocator's count on CUDA, else ours."""
    if device() == "cuda":
        return cuda_peak_bytes(work)
    with LiveTensors() as tensors:
        work()
    return tensors.peak


def table(figures: Mapping[str, Any]) -> str:
    """The table that `limner bench sampler` prints."""
    settings, rows = figures["settings"], figures["rows"]
    names = ("limner", *GOALS)
    lines = [
        f"fp32, {settings['device']}, {settings['threads']} thread(s), torch {settings['torch']}, transformers "
        f"{settings['transformers']}; documents of {settings['steps']} steps, the same ids for all",
        "",
        f"{'tokens/s':18}{'group':>6}" + "".join(f"{name:>11}" for name in names),
    ]
    for row in rows:
        rates = (row["tokens_per_second"][name] for name in names)
        lines.append(f"{row['model']:18}{row['group']:6}" + "".join(f"{rate:11.0f}" for rate in rates))
    lines += ["", f"{'limner over':18}{'group':>6}" + "".join(f"{name:>24}" for name in GOALS)]
    kinds = {"limner_over": [], "limner_over_cpu": ["by CPU seconds:"]}
    if settings["device"] != "cpu":
        del kinds["limner_over_cpu"]
    for key, title in kinds.items():
        lines += title
        for row in rows:
            ratios = [row[key][name] for name in GOALS]
            cells = (f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" for ratio in ratios)
            lines.append(f"{row['model']:18}{row['group']:6}" + "".join(f"{cell:>24}" for cell in cells))
    missed = [
        f"{row['model']} {row['group']} {name}"
        for row in rows
        for name, goal in GOALS.items()
        if row["limner_over"][name]["value"] < goal
    ]
    lines += [
        f"{'goal':24}" + "".join(f"{f'>= {goal:.2f}':>24}" for goal in GOALS.values()),
        f"missed: {', '.join(missed) or 'none'}",
        "median [lowest, highest] of the turns, in each of which all contenders run once, in rotating order",
        "",
        f"{'peak memory, MB':18}{'group':>6}" + "".join(f"{name:>11}" for name in names),
    ]
    for row in rows:
        peaks = (row["peak_bytes"][name] / 1e6 for name in names)
        lines.append(f"{row['model']:18}{row['group']:6}" + "".join(f"{peak:11.1f}" for peak in peaks))
    lines += [
        "largest sum of tensors alive beyond the weights; unbatched: of one document",
        "",
        f"{'the host waits':18}{'group':>6}{'limner':>11}{'batched':>11}{'limner, texts':>16}{'pictures':>11}",
    ]
    for row in rows:
        counts = [*row["waits_a_step"].values(), row["waits"]["text"], row["waits"]["picture"]]
        cells = "".join(f"{count:{width}.2f}" for count, width in zip(counts, (11, 11, 16, 11), strict=True))
        lines.append(f"{row['model']:18}{row['group']:6}{cells}")
    lines += [
        "times a step of the longest document, beginning and end included; of texts or pictures alone, without those",
        "",
        f"{'unequal lengths':18}{'at a time':>10}{'refilled':>20}{'waves':>20}{'waves over refilled':>24}",
    ]
    for name, row in {row["model"]: row for row in rows}.items():
        refilled, waves = (row["unequal_lengths"][way] for way in ("refilled", "waves"))
        ratio = paired_ratio(waves["seconds"], refilled["seconds"])
        gain = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        cells = "".join(f"{way['steps']:>8} / {way['rows']:<9}" for way in (refilled, waves))
        lines.append(f"{name:18}{max(settings['groups']):10}{cells}{gain:>24}")
    lines.append("steps / rows through the model in all of them; and seconds")
    return "\n".join(lines)


if __name__ == "__main__":
    run_or_exit(main)
