"""The benchmark of rollouts under LoRA at its smallest: all write the same, and what is unmerged costs more work."""

import json

import pytest

from limner.configs.errors import InputError
from limner.studies.bench.lora import main

SMALLEST = [
    *("--group", "4", "--turns", "2", "--text_tokens", "3", "--lora.rank", "2"),
    *("--model.text_vocabulary", "512", "--model.hidden_size", "32", "--model.intermediate_size", "64"),
    *("--model.layers", "1", "--model.heads", "2", "--model.max_positions", "256"),
]


def test_the_smallest_benchmark(tmp_path, capsys):
    main([*SMALLEST, "--json", str(tmp_path / "bench.json")])
    figures = json.loads((tmp_path / "bench.json").read_text())
    assert {name: len(turns) for name, turns in figures["seconds"].items()} == {
        "weights": 2,
        "merged": 2,
        "unmerged": 2,
    }
    ratios = figures["over_weights"]["merged"]
    assert 0 < ratios["low"] <= ratios["value"] <= ratios["high"] and figures["tokens"] > 0
    said = capsys.readouterr().out
    assert "goal: merged at most 1.10" in said and f"{figures['settings']['parameters']:,} parameters, rank 2" in said


def test_sizes_below_one_are_refused():
    with pytest.raises(InputError, match="turns: expected a number 1 to 1,000,000, got 0"):
        main([*SMALLEST, "--turns", "0"])
