"""The retrieval benchmark in small: exact is exact, more work finds more, and the figures say what was run."""

import json

import numpy as np
import pytest

from limner.configs.errors import InputError
from limner.studies.bench import retrieval as bench
from limner.studies.bench.retrieval import BenchConfig, blocks, draw, exact_neighbours, main


def test_exact_neighbours_over_blocks(monkeypatch):
    config = BenchConfig(vectors=1000, dimensions=16, clusters=7, directions=4)
    monkeypatch.setattr(bench, "BLOCK", 300)
    vectors, queries = np.concatenate(list(blocks(config))), draw(config, -1, 5)
    assert vectors.shape == (1000, 16) and len(np.unique(vectors, axis=0)) == 1000
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (exact_neighbours(config, queries) == np.argsort(-(queries @ vectors.T), axis=1)[:, :10]).all()


def test_the_benchmark_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "SETTINGS", ((1, None), (10, 10), (100, 50)))
    file = tmp_path / "figures.json"
    sizes = ["--vectors", "3000", "--dimensions", "32", "--clusters", "20", "--directions", "8", "--queries", "20"]
    main([*sizes, "--folder", str(tmp_path / "table"), "--json", str(file)])
    figures = json.loads(file.read_text())
    recalls = [row["recall"] for row in figures["rows"]]
    assert recalls == sorted(recalls) and recalls[-1] > 0.95 and figures["exact"]["recall"] == 1
    assert all(0 < row["p50_ms"] <= row["p95_ms"] for row in figures["rows"])
    assert figures["bytes"]["vectors"] > 3000 * 32 * 4 and 0 < figures["bytes"]["index"] < figures["bytes"]["vectors"]
    out = capsys.readouterr().out
    assert "3,000 vectors of 32: 20 clusters" in out and "seed 0" in out and "recall@10" in out


@pytest.mark.parametrize(("flag", "value"), [("--vectors", "10"), ("--directions", "500"), ("--queries", "0")])
def test_sizes_that_cannot_be(flag, value):
    with pytest.raises(InputError, match=flag.removeprefix("--")):
        main([flag, value])
