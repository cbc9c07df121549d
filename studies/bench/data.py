"""What data cost: converting, reading, waiting for, going on; beside webdataset and Hugging Face `datasets`.

    limner bench data [--json FILE] [--records 2000]

Inputs are made: chats about noisy JPEGs of a photo's size. Readers decode the same pictures to the same tensors, in
batches, in a random order (webdataset: through its shuffle buffer), each at its best number of worker processes.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader

from ...configs.bounds import OneOrMore, Seed, Side
from ...configs.errors import run_or_exit
from ...data.conversion import convert, open_source
from ...data.mixture import PackedRows, Place, SourceConfig
from ...data.shards import encode_shards, read_index
from ...data.shards.keyed import Records
from ...data.shards.order import Order
from ...models.documents.document import open_image, to_rgb
from ...models.pictures.contract import VQImageTokenizer
from ...models.policy import UnifiedPolicy
from ...models.tokens.processing import Processor
from ...models.tokens.sequence import collate
from ...models.tokens.text_tokenizer import train_text_tokenizer
from ...train.from_scratch.new_model import NewModelConfig, general_english, new_policy
from ..seed import limit_threads, say
from .command import bench

BATCH = 16
REPEATS = 3
"""The best of so many passes: what else runs on the machine makes each slower, never faster."""
FILES = 64
"""Different pictures; a record's own name and bytes do not matter to what is measured."""
WORKERS = (0, 1, 2, 4)
SENTENCE = "A small red kite stands above a long blue hill, and two people look at it from a wooden bench."


@dataclass
class BenchConfig:
    records: OneOrMore = 2000
    side: Side = 256
    """Pixels of a picture's side."""
    steps: OneOrMore = 30
    """Of the warm-up whose waiting is measured."""
    pack_length: OneOrMore = 512
    resume_rows: list[OneOrMore] = field(default_factory=lambda: [10, 1000, 100_000])
    memory_records: list[OneOrMore] = field(default_factory=lambda: [10_000, 100_000])
    seed: Seed = 0
    json: str | None = None
    """File for the figures."""


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "data", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    limit_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"making {config.records} records")
        chats, pictures = write_chats(folder, config.records, config.side, config.seed)
        figures: dict[str, Any] = {"settings": {**asdict(config), "cores": os.cpu_count()}}
        say("converting")
        figures["convert"] = converting(folder, chats, pictures)
        say("reading")
        figures["readers"] = reading(folder, pictures)
        say("training")
        policy = small_policy(config)
        figures["encode"], figures["wait_share"] = waiting(folder, policy, config)
        say("going on")
        figures["resume_seconds"] = going_on(folder, policy.processor, config)
        say("peak memory")
        figures["peak_bytes"] = {str(count): peak_bytes(folder, count) for count in config.memory_records}
    return figures


def write_chats(folder: Path, count: int, side: int, seed: int) -> tuple[Path, list[Path]]:
    """A JSON file of chats, and the picture of each."""
    rng = np.random.default_rng(seed)
    files = []
    for number in range(FILES):
        smooth = Image.fromarray(rng.integers(0, 255, (side // 8 + 1, side // 8 + 1, 3), np.uint8))
        files.append(folder / f"{number}.jpg")
        smooth.resize((side, side), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    pictures = [files[number % FILES] for number in range(count)]
    path = folder / "chats.jsonl"
    with path.open("w", encoding="utf-8") as lines:
        for number, picture in enumerate(pictures):
            turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": SENTENCE}]
            lines.write(json.dumps({"id": number, "image": picture.name, "conversations": turns}) + "\n")
    return path, pictures


def converting(folder: Path, chats: Path, pictures: Sequence[Path]) -> dict[str, float]:
    """Records a second on one core: ours, and a loop that decodes each picture and writes both files into a tar."""
    ours = min(
        _seconds(lambda: convert(open_source("chat"), chats, folder / "shards", overwrite=True)) for _ in range(REPEATS)
    )
    bare = min(_seconds(lambda: _bare(folder, chats, pictures)) for _ in range(REPEATS))
    count = len(pictures)
    return {"records_per_second": count / ours, "bare_per_second": count / bare, "times_bare": ours / bare}


def _seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _bare(folder: Path, chats: Path, pictures: Sequence[Path]) -> None:
    """Decodes each picture, and writes it and its record into a tar."""
    lines = chats.read_text(encoding="utf-8").splitlines()
    with tarfile.open(folder / "bare.tar", "w") as archive:
        for number, (line, picture) in enumerate(zip(lines, pictures, strict=True)):
            data = picture.read_bytes()
            to_rgb(open_image(data))
            for suffix, content in (("json", json.dumps(json.loads(line)).encode()), ("jpg", data)):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


# ---- readers ----


def reading(folder: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    """Records a second of each reader, raw and decoded, at its best number of workers."""
    rows = {"image": [picture.read_bytes() for picture in pictures], "text": [SENTENCE] * len(pictures)}
    datasets.Dataset.from_dict(rows).save_to_disk(folder / "hf")
    makers: dict[str, Callable[[bool], Any]] = {
        "limner": lambda decode: Keyed(folder / "shards", decode),
        "webdataset": lambda decode: streamed(folder / "bare.tar", decode),
        "datasets": lambda decode: Mapped(folder / "hf", decode),
    }
    figures: dict[str, Any] = {}
    for name, make in makers.items():
        for what, decode in (("raw", False), ("decoded", True)):
            counts = WORKERS[: 2 + (os.cpu_count() or 1) // 2]
            best = max((rate(make(decode), workers), workers) for workers in counts for _ in range(REPEATS))
            figures.setdefault(name, {})[what] = {"records_per_second": best[0], "workers": best[1]}
    return figures


def rate(dataset: Any, workers: int) -> float:
    """Records a second of one epoch through a loader that hands over whole batches."""
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_same)
    started, count = time.perf_counter(), 0
    for batch in loader:
        count += len(batch[1])
    return count / (time.perf_counter() - started)


def _same(batch: Any) -> Any:
    return batch


def pixels_of(data: bytes) -> torch.Tensor:
    return torch.from_numpy(np.array(to_rgb(open_image(data))))


class Keyed(torch.utils.data.Dataset):
    """Ours: keys in the order of an epoch, each sought."""

    def __init__(self, folder: Path, decode: bool) -> None:
        self.records, self.decode = Records(read_index(folder), "train"), decode
        self.order = Order(self.records.sizes, 0)

    def __len__(self) -> int:
        return len(self.records) // BATCH

    def __getitem__(self, batch: int) -> tuple[Any, list[str]]:
        if batch >= len(self):
            raise IndexError
        numbers = [self.order.record(at) for at in range(batch * BATCH, (batch + 1) * BATCH)]
        if not self.decode:
            raw = [self.records.raw(number) for number in numbers]
            return [next(v for k, v in r.items() if k.startswith("image")) for r in raw], [r["__key__"] for r in raw]
        documents = [self.records.document(number) for number in numbers]
        arrays = [torch.from_numpy(np.array(document.images[0].pixels())) for document in documents]
        return torch.stack(arrays), [document.text for document in documents]


class Mapped(torch.utils.data.Dataset):
    """Hugging Face: rows of a data set on disk, memory-mapped."""

    def __init__(self, folder: Path, decode: bool) -> None:
        self.rows, self.decode = datasets.Dataset.load_from_disk(str(folder)), decode
        self.order = np.random.default_rng(0).permutation(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows) // BATCH

    def __getitem__(self, batch: int) -> tuple[Any, list[str]]:
        if batch >= len(self):
            raise IndexError
        rows = self.rows[self.order[batch * BATCH : (batch + 1) * BATCH]]
        return (torch.stack([pixels_of(data) for data in rows["image"]]) if self.decode else rows["image"]), rows[
            "text"
        ]


def streamed(tar: Path, decode: bool) -> Any:
    """webdataset: its own pipeline over a tar, with a shuffle buffer. One shard is read by one worker."""

    def record(sample: dict[str, Any]) -> tuple[Any, str]:
        text = json.loads(sample["json"])["conversations"][1]["value"]
        return (pixels_of(sample["jpg"]) if decode else sample["jpg"]), text

    def together(batch: list[tuple[Any, str]]) -> tuple[Any, list[str]]:
        pictures, texts = zip(*batch, strict=True)
        return (torch.stack(pictures) if decode else list(pictures)), list(texts)

    made = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)  # type: ignore[attr-defined]
    return made.shuffle(1000).map(record).batched(BATCH, collation_fn=together, partial=False)


# ---- training ----


def small_policy(config: BenchConfig) -> UnifiedPolicy:
    torch.manual_seed(config.seed)
    tokenizer = VQImageTokenizer.create(image_size=128, patch=8, channels=(64,), codes=256, code_size=16).eval()
    texts = train_text_tokenizer([general_english(), *[SENTENCE] * 50], 1024)
    return new_policy(Processor(texts, tokenizer), NewModelConfig(hidden_size=256, intermediate_size=768))


def waiting(folder: Path, policy: UnifiedPolicy, config: BenchConfig) -> tuple[dict[str, float], dict[str, float]]:
    """Pictures a second of `limner data encode`, and the share of a step in which the model waits for its rows."""
    done = encode_shards(folder / "shards", folder / "coded", policy.processor.image_tokenizer)
    shares = {
        name: wait_share(policy, SourceConfig(str(folder / source)), config)
        for name, source in (("cached", "coded"), ("uncached", "shards"))
    }
    return {"pictures_per_second": done.pictures / max(done.seconds, 1e-9)}, shares


def wait_share(policy: UnifiedPolicy, source: SourceConfig, config: BenchConfig) -> float:
    """The first two steps, in which processes start, are not counted."""
    rows = iter(PackedRows([source], policy.processor, length=config.pack_length, seed=0, workers=1))
    optimizer = torch.optim.AdamW(policy.model.parameters(), 1e-4)
    waited = total = 0.0
    for step in range(config.steps + 2):
        started = time.perf_counter()
        batch = collate([next(rows) for _ in range(2)], policy.vocabulary)
        ready = time.perf_counter()
        logp_BT, _ = policy.log_probs(policy.model, batch)
        (-(logp_BT * batch.trainable_BT).sum() / batch.trainable_BT.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            waited += ready - started
            total += time.perf_counter() - started
    return waited / total


def going_on(folder: Path, processor: Processor, config: BenchConfig) -> dict[str, float]:
    """Seconds to the next row of a run that has read so many."""
    source = SourceConfig(str(folder / "coded"))
    first = PackedRows([source], processor, length=config.pack_length, seed=0)
    each = sum(1 for _ in itertools.takewhile(lambda _: first.place.block == 0, first))
    seconds = {}
    for count in config.resume_rows:
        started = time.perf_counter()
        rows = PackedRows([source], processor, length=config.pack_length, seed=0)
        rows.place = Place(*divmod(count, each))
        next(iter(rows))
        seconds[str(count)] = time.perf_counter() - started
    return seconds


def peak_bytes(folder: Path, count: int) -> int:
    """Of a process of its own that converts so many small records."""
    chats = folder / f"{count}.jsonl"
    picture = folder / "small.png"
    Image.new("RGB", (32, 32), "red").save(picture)
    with chats.open("w", encoding="utf-8") as lines:
        for line in records_of(count, picture.name):
            lines.write(line)
    code = (
        "import resource, sys; from pathlib import Path; from limner.data.conversion import convert, open_source; "
        "convert(open_source('chat'), Path(sys.argv[1]), Path(sys.argv[2])); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    words = [sys.executable, "-c", code, str(chats), str(folder / f"{count}-shards")]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return int(said.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


def records_of(count: int, picture: str) -> Iterator[str]:
    for number in range(count):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A kite."}]
        yield json.dumps({"id": number, "image": picture, "conversations": turns}) + "\n"


def table(figures: Mapping[str, Any]) -> str:
    settings, convert_, wait = figures["settings"], figures["convert"], figures["wait_share"]
    lines = [
        f"{settings['records']:,} records with a JPEG of {settings['side']} x {settings['side']}; {settings['cores']} "
        "cores; records a second",
        "",
        f"convert  {convert_['records_per_second']:8.0f}   bare decode and write {convert_['bare_per_second']:.0f} "
        f"({convert_['times_bare']:.2f} times its time)",
        f"encode   {figures['encode']['pictures_per_second']:8.0f}   pictures to codes",
        "",
        f"{'reader':<12}{'raw':>10}{'workers':>9}{'decoded':>10}{'workers':>9}",
    ]
    for name, row in figures["readers"].items():
        cells = "".join(
            f"{row[what]['records_per_second']:10.0f}{row[what]['workers']:9}" for what in ("raw", "decoded")
        )
        lines.append(f"{name:<12}{cells}")
    resumed = ", ".join(f"{count}: {seconds:.2f} s" for count, seconds in figures["resume_seconds"].items())
    peaks = ", ".join(f"{int(count):,}: {peak / 2**20:.0f} MiB" for count, peak in figures["peak_bytes"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"waiting in a step: codes cached {wait['cached']:.1%}, not cached {wait['uncached']:.1%}",
            f"to the next row after so many rows: {resumed}",
            f"peak memory of converting so many records: {peaks}",
        ]
    )


if __name__ == "__main__":
    run_or_exit(main)
