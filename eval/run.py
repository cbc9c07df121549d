"""`limner eval`: a model's answers to a benchmark, or answers that are there already, scored and counted.

    data or answers -> items -> (answers of the model) -> verdicts -> results.json

limner eval --config eval/mmie --model DIR --data data.json --judge.endpoint.model NAME --out runs/mmie
limner eval --config eval/mmie --answers outputs.json --judge.endpoint.model NAME --out runs/mmie
torchrun --nproc-per-node 4 -m limner.cli eval --config eval/mmie ...      # a share of the items each

A second call with the same settings takes up where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..configs import build, parse, save_resolved
from ..configs.bounds import Guidance, Limit, NoneOrMore, OneOrMore, Seed, Temperature, TopP
from ..configs.errors import InputError, keeping
from ..configs.options import make
from ..configs.registry import Found, files_in, find
from ..configs.terminal import say
from ..configs.whole import whole_directory, write_atomically
from ..models.chat.choice import ChatConfig, chat_model
from ..models.chat.requests import ChatModel
from ..models.checkpoints.hub import find_checkpoint, load_model
from ..models.sampler.generation import Sampling
from .benchmark import (
    AnswersItself,
    Benchmark,
    Given,
    Item,
    Writing,
    completed,
    read_answers,
    score_answers,
    write_answers,
)
from .entries import Copies, Entry
from .folder import Journal, keep_manifest
from .pipeline import PipelineConfig, Wishes
from .pipeline import manifest as describe
from .pipeline import write_answers as write_by_pipeline
from .results import write_results

SAY_EVERY_S = 30.0
EDGE = 2**20
"""Bytes at the beginning and at the end of a file of weights that tell it from another."""


@dataclass
class SamplingConfig:
    """How the model writes; null is its own setting."""

    max_new_tokens: OneOrMore | None = None
    """Longest answer, pictures included."""
    max_images: NoneOrMore | None = None
    temperature: Temperature | None = None
    """0 is greedy."""
    top_k: NoneOrMore | None = None
    top_p: TopP | None = None
    guidance: Guidance | None = None
    """Classifier-free guidance of pictures; 1 is none."""


@dataclass
class EvalConfig:
    MOVED: ClassVar = dict.fromkeys(
        ("mmie", "interleavedbench", "geneval", "dpgbench", "mramg"),
        "settings of a benchmark stand under `options:` now, as a flag --options.KEY VALUE",
    )
    """Keys of limner 0.1."""
    benchmark: str = "mmie"
    """One of `limner list benchmark`, or path/to/file.py:Name of your own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the benchmark; `limner list benchmark` says which it has."""
    data: str = ""
    """The benchmark's file or folder; with `answers` it may be left out, their own questions hold then."""
    data_revision: str = ""
    """Commit of the download, for the manifest."""
    images: str = ""
    """Folder that pictures are relative to; by default that of the file."""
    model: str = ""
    """Checkpoint folder or ORG/NAME on the Hub, to write answers."""
    pipeline: PipelineConfig | None = None
    """Two models that write answers instead: a language model, and one that paints what it describes."""
    answers: str = ""
    """File or folder of answers to score instead, in the benchmark's own format."""
    out: str = "runs/eval"
    """Folder of the run."""
    limit: Limit = 0
    """Items of each category, the first ones; 0 takes all."""
    prompt: str = "{question}"
    """What the model is asked, the question in its place."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: OneOrMore = 16
    """Answers written at a time."""
    seed: Seed = 0
    judge: ChatConfig = field(default_factory=ChatConfig)
    samples: NoneOrMore = 24
    """Items shown in the report."""
    suite: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Several evaluations of one model, by name: settings of each, over those here. Each is in OUT/NAME."""
    export: str = ""
    """Write the answers there as well, in the benchmark's own format, with all pictures."""

    def __post_init__(self) -> None:
        if self.suite and (self.data or self.answers or self.export):
            raise InputError("suite: data, answers and export are given to each of its evaluations, suite.NAME.data")
        kind = benchmark_of(self.benchmark).thing
        if getattr(kind, "takes_model", True):
            if not self.suite and sum(map(bool, (self.model, self.answers, self.pipeline))) != 1:
                raise InputError(
                    "model, answers, pipeline: give one of them, --model DIR or --pipeline... to write, or --answers "
                    "FILE to score"
                )
        elif self.model or self.pipeline or not (self.data or self.suite):
            raise InputError(
                f"{self.benchmark}: give --data FOLDER, and --answers FILE or a strategy's options; no --model"
            )
        if not self.suite and not self.data and not self.answers:
            raise InputError("data: missing; name the benchmark's file (--data FILE)")
        if self.prompt.count("{question}") != 1:
            raise InputError("prompt: the question's place {question} stands in it exactly once")
        for name, least in {"limit": 0, "batch_size": 1, "seed": 0, "samples": 0}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)}; at least {least}")
        if self.answers and not getattr(kind, "takes_answers", True):
            raise InputError(f"answers: {self.benchmark} has no format of its own for answers")
        if self.export and not hasattr(kind, "export"):
            raise InputError(f"export: answers to {self.benchmark} have no format of its own to be written in")


@dataclass(frozen=True, slots=True)
class Shard:
    """The process's share of the items."""

    rank: int = 0
    world: int = 1


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """The folders of runs that hold results now; where another process is still at work they do not yet."""
    (config,) = parse((EvalConfig,), argv, prog="limner eval")
    shard = Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))  # torchrun's
    with keeping(f"{config.out} keeps what is answered and scored; the same command goes on from there"):
        return [Path(run.out) for run in evaluations(config) if evaluate(run, shard)]


def evaluations(config: EvalConfig) -> list[EvalConfig]:
    """The suite's, or the configuration itself. Raises InputError for a fault in any, before one begins."""
    if not config.suite:
        return [config]
    own: dict[str, Any] = {"suite": {}, "options": {}}  # options are of one benchmark
    return [
        build(EvalConfig, {**own, "out": f"{config.out}/{name}", **settings}, f"suite.{name}", config)
        for name, settings in config.suite.items()
    ]


def evaluate(config: EvalConfig, shard: Shard = Shard()) -> bool:
    """Does what is not done yet of this process's share. True where results.json has been written.

    Raises InputError for faults in data and settings, and where the folder holds results of other settings.
    """
    out = Path(config.out)
    items, imported, sources = collect(config)
    benchmark = make_benchmark(config, items)
    judge = make_judge(config, benchmark)
    try:
        keep_manifest(out, manifest(config, benchmark, judge, sources))
        own = benchmark.items[shard.rank :: shard.world]
        if shard.rank == 0:
            save_resolved(out / "config.yaml", config)
        if imported is None:
            with Journal(out, "answers", shard.rank) as journal:
                write_missing(config, benchmark, own, journal)
        answers = answers_of(benchmark, out, imported)
        with Journal(out, "verdicts", shard.rank) as journal:
            report("scored", score_answers(benchmark, own, answers, judge, journal), len(own))
    finally:
        if judge:
            judge.close()
        if isinstance(benchmark, AnswersItself):
            benchmark.close()
    answers = answers_of(benchmark, out, imported)  # those of the other processes, too
    finished = write_results(out, benchmark, answers, config.samples)
    if finished and config.export:
        write_export(config, benchmark, answers)
    return finished


# ---- what is evaluated ----


def benchmark_of(name: str) -> Found:
    return find("benchmark", name, "benchmark")


def collect(config: EvalConfig) -> tuple[list[Item], dict[str, Given] | None, dict[str, Any]]:
    """Items, answers where a file of them is given, and the files for the manifest."""
    read = benchmark_of(config.benchmark).thing.records
    images = Path(config.images) if config.images else None
    sources: dict[str, Any] = {}
    rows: dict[str, list[tuple[Item, Given | None]]] = {}
    for name in ("data", "answers"):
        if path := getattr(config, name):
            rows[name] = read(Path(path), images)
            sources[name] = {"file": Path(path).name, "sha256": sha256(Path(path)), "records": len(rows[name])}
    if config.data:
        sources["data"]["revision"] = config.data_revision
    items = limited([item for item, _ in rows.get("data") or rows["answers"]], config.limit)
    if not config.answers:
        return items, None, sources
    found = {item.id: given for item, given in rows["answers"] if given is not None}
    if not found:
        raise InputError(f"{config.answers}: none of its {len(rows['answers'])} records holds an answer")
    if config.data:
        check_answers({item.id: item for item, _ in rows["data"]}, rows["answers"], config.answers, config.data)
    nothing = Given(failure="not in the file", reason=f"{config.answers} has no answer to it")
    return items, {item.id: found.get(item.id) or nothing for item in items}, sources


def check_answers(
    asked: Mapping[str, Item], rows: Sequence[tuple[Item, Given | None]], answers: str, data: str
) -> None:
    """Raises InputError where answers are to other questions than those that their ids, or their places, stand for."""
    for item, _ in rows:
        if item.id not in asked:
            known = ", ".join([*asked][:3])
            raise InputError(f"{answers}: answers {item.id!r}, which {data} does not ask; its first ones are {known}")
        ours, theirs = (_plain(one.question) for one in (asked[item.id], item))
        if theirs and ours and theirs not in ours and ours not in theirs:
            raise InputError(
                f"{answers}: answers {theirs[:60]!r} as {item.id}, and {data} asks {ours[:60]!r} there: another order, "
                "or another file; give its records the `question_id` of the questions"
            )


def _plain(question: Sequence[Entry]) -> str:
    """Its words, for comparison."""
    return " ".join(" ".join(entry.text for entry in question if entry.text).casefold().split())


def limited(items: Sequence[Item], limit: int) -> list[Item]:
    """The first items of each category."""
    seen: dict[str, int] = {}
    kept = []
    for item in items:
        seen[item.category] = seen.get(item.category, 0) + 1
        if not limit or seen[item.category] <= limit:
            kept.append(item)
    return kept


def make_benchmark(config: EvalConfig, items: Sequence[Item]) -> Benchmark:
    """Raises InputError naming an option at fault."""
    read = {name: Path(path) if (path := getattr(config, name)) else None for name in ("data", "answers")}
    found = benchmark_of(config.benchmark)
    return completed(make(found, config.options, "options", filled={"items": items, **read}), found.label)


def make_judge(config: EvalConfig, benchmark: Benchmark) -> ChatModel | None:
    if not benchmark.needs_judge:
        return None
    return chat_model(config.judge, "judge")


def manifest(
    config: EvalConfig, benchmark: Benchmark, judge: ChatModel | None, sources: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the results depend on, and the day they were begun."""
    writing: dict[str, Any] = {}
    files = files_in([config.benchmark])
    prompt = {"text": config.prompt, "sha256": hashlib.sha256(config.prompt.encode()).hexdigest()}
    if config.model:
        model = {"name": config.model, "weights": fingerprint(find_checkpoint(config.model))}
        writing = {"model": model, "prompt": prompt, "sampling": asdict(config.sampling), "seed": config.seed}
    elif config.pipeline:
        pictures = {"max_images": config.sampling.max_images}
        writing = {"model": describe(config.pipeline), "prompt": prompt, "sampling": pictures, "seed": config.seed}
    elif isinstance(benchmark, AnswersItself) and benchmark.writes:
        writing = {"model": {"name": benchmark.label}}
    return {
        "limner": version("limner"),
        "benchmark": benchmark.name,
        **sources,
        "limit": config.limit,
        **writing,
        "scoring": benchmark.manifest(),
        **({"files": {file.path.name: file.sha256 for file in files}} if files else {}),
        "judge": judge.manifest() if judge else "exact verifiers",
        "created": time.strftime("%Y-%m-%d"),
    }


def sha256(path: Path) -> str:
    """Of a file; of a folder that of the names and digests of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = (f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(checkpoint: Path) -> str:
    """Tells a checkpoint from one of other weights or settings: its JSON files, and both ends of each weight file."""
    digest = hashlib.sha256()
    for path in sorted([*checkpoint.rglob("*.safetensors"), *checkpoint.rglob("*.json")]):
        digest.update(f"{path.relative_to(checkpoint).as_posix()} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, path.stat().st_size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


# ---- doing it ----


def answers_of(benchmark: Benchmark, out: Path, imported: Mapping[str, Given] | None) -> Mapping[str, Given]:
    """By item id: imported, or those of the run's folder."""
    if isinstance(benchmark, AnswersItself):
        return benchmark.answers(out, imported)
    return read_answers(out) if imported is None else imported


def write_missing(config: EvalConfig, benchmark: Benchmark, items: Sequence[Item], journal: Journal) -> None:
    """Answers of the items that have none; without such the model is not even loaded."""
    answers = answers_of(benchmark, journal.path.parent, None)
    waiting = [item for item in items if item.id not in answers or answers[item.id].failure]
    if not waiting:
        return
    if isinstance(benchmark, AnswersItself):
        report("written", benchmark.write(waiting, journal), len(waiting))
        return
    if config.pipeline:
        wishes = Wishes(config.prompt, config.sampling.max_images, config.seed, config.batch_size)
        report("written", write_by_pipeline(config.pipeline, waiting, wishes, journal), len(waiting))
        return
    device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}" if torch.cuda.is_available() else "cpu"
    model = load_model(config.model, device)
    changes = {name: value for name, value in asdict(config.sampling).items() if value is not None}
    sampling: Sampling = replace(model.sampling, **changes, seed=config.seed)
    writing = Writing(sampling, config.prompt, config.batch_size)
    report("written", write_answers(model.policy, waiting, writing, journal), len(waiting))


def report(what: str, progress: Iterable[int], total: int) -> None:
    """Runs it through and says now and then how far it is."""
    said = time.monotonic()
    for done in progress:
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            say(f"limner eval: {what} {done} of {total}", to_stderr=True, flush=True)


def write_export(config: EvalConfig, benchmark: Benchmark, answers: Mapping[str, Given]) -> None:
    name, records = benchmark_of(config.benchmark).thing.export
    with whole_directory(Path(config.export)) as folder:
        written = records(
            benchmark.items,
            answers,
            config.pipeline.label if config.pipeline else config.model or "imported",
            Copies(folder),
        )
        write_atomically(folder / name, json.dumps(written, indent=1) + "\n")
