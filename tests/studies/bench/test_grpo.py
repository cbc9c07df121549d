"""The benchmark of GRPO at its smallest: the form of its figures, equal tokens, and a clock that charges once."""

import json

import pytest

from limner.configs.errors import InputError
from limner.studies.bench import clock
from limner.studies.bench import grpo as bench_grpo
from limner.studies.bench.clock import PHASES, Clock
from limner.studies.bench.grpo import main, paired_ratio, run

SMALLEST = [
    *("--steps", "2", "--rollouts", "8", "--group_size", "4", "--completion_tokens", "12"),
    *("--model.text_vocabulary", "512", "--model.hidden_size", "32", "--model.intermediate_size", "64"),
    *("--model.layers", "1", "--model.heads", "2", "--model.max_positions", "256"),
    *("--memory.vocabulary", "4096", "--memory.rollouts", "8", "--memory.completion_tokens", "24"),
    *("--memory.score_chunk", "16", "--memory.micro_batch_tokens", "120"),
]


@pytest.mark.slow
def test_the_smallest_benchmark(tmp_path, capsys):
    main([*SMALLEST, "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text())

    assert {name: len(values) for name, values in figures["step_seconds"].items()} == {"limner": 2, "trl": 2}
    phases = figures["phase_seconds"]
    assert set(phases) == {"rollout", "scoring", "update", "total"}
    for *parts, total in zip(*phases.values(), strict=True):
        assert min(parts) > 0 and sum(parts) < total

    steps = figures["steps"]
    for ours, theirs in zip(steps["text_limner"], steps["text_trl"], strict=True):
        assert ours["prompt_tokens"] == theirs["prompt_tokens"]
        assert ours["completion_tokens"] == theirs["completion_tokens"] == 8 * 12
        for step in (ours, theirs):
            assert min(step["rollout"], step["scoring"], step["update"], step["rest"]) > 0

    peaks = figures["peak_bytes"]
    assert peaks["both"] < min(peaks["score_chunk"], peaks["micro_batch_tokens"])
    assert max(peaks["score_chunk"], peaks["micro_batch_tokens"]) < peaks["plain"]
    printed = capsys.readouterr().out
    assert "none of these" in printed and "algorithm.score_chunk 16" in printed


def test_the_clock_charges_each_moment_once(monkeypatch):
    looks = iter(range(100))
    monkeypatch.setattr(clock, "now", lambda: float(next(looks)))
    watch = Clock({"steps_per_generation": 1})

    class Work:
        def outer(self):
            return self.inner()

        def inner(self):
            return "done"

    work = Work()
    watch.charge(work, {"outer": "update", "inner": "rollout"})
    watch.on_train_begin(None, None, None)
    assert work.outer() == "done"
    watch.on_step_end(None, type("State", (), {"global_step": 1}), None)
    (step,) = watch.steps
    # Seven looks at the clock make five intervals of a second.
    assert {name: step[name] for name in PHASES} == {"rollout": 1, "scoring": 0, "update": 2, "rest": 2}
    assert step["total"] == 5


def test_the_ratio_is_paired():
    theirs, ours = ([{"cpu": scale * 10.0**power} for power in range(3)] for scale in (2, 1))
    figures = paired_ratio(theirs, ours, "cpu")
    assert figures == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 3}


@pytest.mark.parametrize(
    "changes, named",
    [({"rollouts": 12}, "group_size"), ({"updates": 3}, "updates"), ({"steps": 0}, "steps")],
)
def test_sizes_that_do_not_divide_are_refused(changes, named):
    with pytest.raises(InputError, match=named):
        run(bench_grpo.BenchConfig(**changes))
