"""What the vector index costs and what it misses: IVF-PQ in LanceDB beside exact search over the same vectors.

    limner bench retrieval [--json FILE] [--vectors 1000000] [--dimensions 384]

Vectors are drawn in blocks and never held together: each is the centre of a cluster plus a Gaussian within a few
directions, all clusters' alike, plus a little noise in all; of length 1. Queries are drawn the same way.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ...configs.bounds import Limit, OneOrMore, Seed, Weight
from ...configs.errors import InputError, run_or_exit
from ...retrieval.index.store import index_vectors, write_vectors
from ...retrieval.index.tables import nearest
from ..seed import limit_threads, say
from .command import bench

BLOCK = 50_000
"""Vectors in memory at a time."""
NEIGHBOURS = 10
SETTINGS: tuple[tuple[int, int | None], ...] = (
    (5, None),
    (20, None),
    (100, None),
    (5, 10),
    (20, 10),
    (50, 10),
    (20, 50),
    (100, 50),
)
"""nprobes, refine_factor: partitions searched, and candidates a neighbour that are compared by their whole vectors."""
NOISE = 0.1
"""Length of the noise in all directions, of that within the cluster."""


@dataclass
class BenchConfig:
    vectors: Limit = 1_000_000
    dimensions: OneOrMore = 384
    clusters: OneOrMore = 1000
    directions: OneOrMore = 48
    """In which the vectors of a cluster differ."""
    spread: Weight = 0.7
    """Mean distance of a vector from its cluster's centre, which has length 1."""
    queries: OneOrMore = 200
    exact_queries: OneOrMore = 5
    """Timed without the index."""
    seed: Seed = 0
    folder: str | None = None
    """Where the table is written, and then stays; by default a temporary folder."""
    json: str | None = None
    """File for the figures."""

    def check(self) -> None:
        """Raises InputError for a size that cannot be."""
        least = {"vectors": 1000, "dimensions": 8, "clusters": 1, "directions": 1, "queries": 1, "exact_queries": 1}
        if wrong := [name for name, size in least.items() if getattr(self, name) < size]:
            raise InputError(f"{wrong[0]}: {getattr(self, wrong[0])}; at least {least[wrong[0]]}")
        if self.directions > self.dimensions:
            raise InputError(f"directions: {self.directions}; at most the {self.dimensions} dimensions")
        if self.folder and Path(self.folder).exists():
            raise InputError(f"folder: {self.folder} exists; name a new one")


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "retrieval", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    """The figures as `--json` writes them."""
    config.check()
    limit_threads()
    with tempfile.TemporaryDirectory() as temporary:
        return measure(config, Path(config.folder or temporary))


def measure(config: BenchConfig, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    vectors = write_vectors(folder, blocks(config), config.dimensions)
    written = time.perf_counter()
    say(f"{config.vectors} vectors written; building the index")
    index_vectors(vectors, "vector")
    built = time.perf_counter()
    say("searching all vectors for the exact neighbours")
    queries_QW = draw(config, -1, config.queries)
    exact_QK = exact_neighbours(config, queries_QW)
    rows = []
    for nprobes, refine_factor in SETTINGS:
        say(f"nprobes {nprobes}, refine factor {refine_factor or 'none'}")
        found_QK, seconds_Q = search(vectors, queries_QW, nprobes, refine_factor)
        rows.append({"nprobes": nprobes, "refine_factor": refine_factor, **quality(found_QK, exact_QK, seconds_Q)})
    few_QW = queries_QW[: config.exact_queries]
    found_QK, seconds_Q = search(vectors, few_QW, 1, None, exact=True)
    sizes = {"index": folder / "vectors.lance/_indices", "vectors": folder / "vectors.lance/data"}
    return {
        "rows": rows,
        "exact": quality(found_QK, exact_QK[: len(few_QW)], seconds_Q),
        "bytes": {name: sum(path.stat().st_size for path in place.rglob("*.*")) for name, place in sizes.items()},
        "seconds": {"write": written - started, "index": built - written},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "settings": {**asdict(config), **{name: version(name) for name in ("lancedb", "numpy")}},
    }


def blocks(config: BenchConfig) -> Iterator[np.ndarray]:
    for number, start in enumerate(range(0, config.vectors, BLOCK)):
        yield draw(config, number, min(BLOCK, config.vectors - start))


def draw(config: BenchConfig, number: int, count: int) -> np.ndarray:
    """Block `number` of the vectors [count, dimensions], float32 of length 1; -1 is that of the queries."""
    fixed = np.random.default_rng([config.seed, 0])
    centres = _unit(fixed.standard_normal((config.clusters, config.dimensions), np.float32))
    directions = np.linalg.qr(fixed.standard_normal((config.dimensions, config.directions)))[0].T.astype(np.float32)
    rng = np.random.default_rng([config.seed, 1, number + 1])
    vectors = centres[rng.integers(config.clusters, size=count)]
    within = rng.standard_normal((count, config.directions), np.float32) / np.float32(config.directions**0.5)
    vectors += config.spread * (within @ directions)
    noise = rng.standard_normal((count, config.dimensions), np.float32)
    vectors += noise * np.float32(config.spread * NOISE / config.dimensions**0.5)
    return _unit(vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_neighbours(config: BenchConfig, queries_QW: np.ndarray) -> np.ndarray:
    """Numbers [queries, 10] of the vectors with the largest cosine, by comparing all."""
    count = len(queries_QW)
    best_QK = np.full((count, 0), -np.inf, np.float32)
    ids_QK = np.zeros((count, 0), np.int64)
    for number, block in enumerate(blocks(config)):
        cosines_QB = queries_QW @ block.T
        top_QK = np.argpartition(-cosines_QB, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
        best_QK = np.concatenate([best_QK, np.take_along_axis(cosines_QB, top_QK, 1)], 1)
        ids_QK = np.concatenate([ids_QK, top_QK + number * BLOCK], 1)
        order_QK = np.argsort(-best_QK, axis=1)[:, :NEIGHBOURS]
        best_QK, ids_QK = np.take_along_axis(best_QK, order_QK, 1), np.take_along_axis(ids_QK, order_QK, 1)
    return ids_QK


def search(
    vectors: Any, queries_QW: np.ndarray, nprobes: int, refine_factor: int | None, *, exact: bool = False
) -> tuple[list[list[int]], list[float]]:
    """Ids found and seconds taken, query by query; the first is asked once before, untimed."""
    found, seconds = [], []
    for query_W in (queries_QW[0], *queries_QW):
        query = nearest(vectors, "vector", query_W, ["id", "_distance"], nprobes=nprobes, refine_factor=refine_factor)
        query = query.bypass_vector_index() if exact else query
        started = time.perf_counter()
        found.append(query.limit(NEIGHBOURS).to_arrow()["id"].to_pylist())
        seconds.append(time.perf_counter() - started)
    return found[1:], seconds[1:]


def quality(found_QK: Sequence[Sequence[int]], exact_QK: np.ndarray, seconds_Q: Sequence[float]) -> dict[str, float]:
    shares = [
        len(set(found) & set(exact)) / NEIGHBOURS for found, exact in zip(found_QK, exact_QK.tolist(), strict=True)
    ]
    p50, p95 = np.percentile(seconds_Q, [50, 95]) * 1000
    return {"recall": float(np.mean(shares)), "p50_ms": float(p50), "p95_ms": float(p95)}


def table(figures: Mapping[str, Any]) -> str:
    """The table that `limner bench retrieval` prints."""
    settings, sizes, seconds = figures["settings"], figures["bytes"], figures["seconds"]
    lines = [
        f"{settings['vectors']:,} vectors of {settings['dimensions']}: {settings['clusters']} clusters, spread "
        f"{settings['spread']} in {settings['directions']} directions, seed {settings['seed']}; "
        f"{settings['queries']} queries; LanceDB {settings['lancedb']}, IVF-PQ by cosine",
        f"written in {seconds['write']:.0f} s, {sizes['vectors'] / 1e6:,.0f} MB; index built in "
        f"{seconds['index']:.0f} s, {sizes['index'] / 1e6:,.0f} MB; peak memory "
        f"{figures['peak_memory_bytes'] / 1e9:.1f} GB",
        "",
        f"{'nprobes':>8}{'refine factor':>15}{'recall@10':>11}{'p50 ms':>9}{'p95 ms':>9}",
    ]
    for row in figures["rows"]:
        lines.append(f"{row['nprobes']:8}{row['refine_factor'] or 'none':>15}" + _cells(row))
    lines.append(f"{'all compared':>23}" + _cells(figures["exact"]))
    return "\n".join(lines)


def _cells(row: Mapping[str, float]) -> str:
    return f"{row['recall']:11.3f}{row['p50_ms']:9.1f}{row['p95_ms']:9.1f}"


if __name__ == "__main__":
    run_or_exit(main)
