"""What serving costs: requests of mixed lengths through the engine, beside one batch by the sampler and one by one.

limner bench serving [--json FILE] [--model FOLDER]

Closed loop: so many clients, each of which asks again when it has its answer. Open loop: arrivals by chance (Poisson),
at shares of what the best closed loop gave, whatever the server manages. Times are as a client sees them:

    ttft            request to its first event           first_picture   request to the first whole picture
    text_itl        between pieces of one text           e2el            request to the end of the answer

Goodput counts the requests a second that keep all of `goals`. All of this is in the process itself, without HTTP; what
that costs is measured apart, on texts alone. Ratios are of turns in which all contenders run once, in rotating order.
"""

from __future__ import annotations

import http.client
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ...configs.bounds import OneOrMore, Seed
from ...configs.errors import InputError, run_or_exit
from ...models.checkpoints.hub import load_model
from ...models.documents.document import InterleavedDocument
from ...models.policy import UnifiedPolicy
from ...models.sampler.generation import complete
from ...models.sampler.request import Request, Sampling
from ...models.writing import Model
from ...serve.command import listen
from ...serve.engine import Engine, Limits, Refused
from ...serve.rows.events import Ended, Event, Shown, Text
from ...serve.rows.ticket import Asked, Reply
from ...serve.server import Server
from ...serve.service import Service
from ...serve.settings import ServeConfig
from ...worlds.picture_stories.scenes import outlines, story_prompt
from ..seed import limit_threads, say
from .clock import device, now
from .command import bench
from .models import MODELS
from .sampler import paired_ratio

GOALS_MET = {"batch": 0.8, "one_by_one": 4.0}
"""Tokens a second with 16 clients over those of batches of 16, and of one request after another."""
BATCH = 16
ONLY_TEXT: dict[str, Any] = {"begin_with_image": False, "max_images": 0, "guidance": 1.0}
PERCENTILES = (50, 90, 99)
NAMES = ("ttft", "first_picture", "text_itl", "e2el")


@dataclass
class BenchConfig:
    model: str = ""
    """Checkpoint folder; by default an untrained model of the demo's size."""
    requests: OneOrMore = 64
    """Of each run."""
    concurrency: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    """Clients of the closed loops."""
    rates: list[float] = field(default_factory=lambda: [0.5, 0.8, 1.2])
    """Of the open loops, as shares of the requests a second of the largest closed one."""
    short: OneOrMore = 8
    long: OneOrMore = 96
    """Tokens of texts, from and to."""
    pictures: float = 0.5
    """Share of requests that draw a picture before their text."""
    guided: float = 0.25
    """Share of those with guidance, which take two slots."""
    turns: OneOrMore = 3
    """Timed runs of each contender, of which the ratios are."""
    slots: OneOrMore = 32
    waiting: OneOrMore = 64
    goals: dict[str, float] = field(default_factory=lambda: {"ttft": 1.0, "first_picture": 5.0, "e2el": 15.0})
    """Seconds; a request that keeps them all counts for goodput."""
    seed: Seed = 0
    json: str | None = None
    """File for the figures."""

    def check(self) -> None:
        """Raises InputError."""
        if min(self.concurrency, default=0) < 1 or min(self.rates, default=1.0) <= 0:
            raise InputError("concurrency and rates: numbers above 0")
        if not 0 <= self.pictures <= 1 or not 0 <= self.guided <= 1 or self.long < self.short:
            raise InputError("pictures and guided: shares, 0 to 1; long: at least `short`")
        if unknown := sorted(self.goals.keys() - {*NAMES}):
            raise InputError(f"goals: {unknown[0]!r}; known: {', '.join(NAMES)}")


@dataclass
class Seen:
    """One request as its client saw it; seconds."""

    begun: float
    ttft: float = 0.0
    first_picture: float | None = None
    text_itl: list[float] = field(default_factory=list)
    e2el: float = 0.0
    tokens: int = 0
    pictures: int = 0
    rejected: bool = False

    def keeps(self, goals: dict[str, float]) -> bool:
        times = {"ttft": self.ttft, "first_picture": self.first_picture or 0.0, "e2el": self.e2el}
        times["text_itl"] = max(self.text_itl, default=0.0)
        return not self.rejected and all(times[name] <= most for name, most in goals.items())


Ask = Callable[[Asked], Seen]


def main(argv: Sequence[str] | None = None) -> None:
    bench(BenchConfig, argv, "serving", run, table)


def run(config: BenchConfig) -> dict[str, Any]:
    config.check()
    limit_threads()
    disable_progress_bar()
    model = load_model(config.model) if config.model else Model(MODELS["tiny_llama"].make())
    model.policy.model.to(device()).eval()  # type: ignore[arg-type]
    asked = workload(model.policy, config)
    figures: dict[str, Any] = {"closed": [], "open": []}
    with Engine(model.policy, Limits(config.slots, waiting=config.waiting)) as engine, over_http(model, config) as http:
        ask = asker(engine)
        for clients in config.concurrency:
            say(f"closed loop, {clients} clients")
            seen, seconds = closed(asked, clients, ask)
            figures["closed"].append({"clients": clients} | summary(seen, seconds, config.goals))
        top = max(row["requests_per_second"] for row in figures["closed"])
        for share in config.rates:
            say(f"open loop, {share:g} of {top:.1f} requests/s")
            seen, seconds = opened(asked, share * top, ask, config.seed)
            figures["open"].append({"rate": share * top, "share": share} | summary(seen, seconds, config.goals))
        few = asked[:BATCH]
        for name, part in (("together", asked), ("burst", few)):
            say(f"{len(part)} requests, {BATCH} at a time, {config.turns} turns")
            figures[name] = compare(beside_the_sampler(model.policy, part, ask), config.turns)
        texts = [replace(each, sampling=replace(each.sampling, **ONLY_TEXT)) for each in few]
        ways = {
            "http": lambda: tokens_of(closed(texts, BATCH, http)),
            "engine": lambda: tokens_of(closed(texts, BATCH, ask)),
        }
        figures["http"] = compare(ways, config.turns)
    figures["settings"] = {**asdict(config), "device": device(), "threads": torch.get_num_threads()}
    return figures


def beside_the_sampler(policy: UnifiedPolicy, asked: Sequence[Asked], ask: Ask) -> dict[str, Callable[[], int]]:
    """The same requests by so many clients, in batches of so many, and one after another."""
    batches = [asked[first : first + BATCH] for first in range(0, len(asked), BATCH)]
    return {
        "engine": lambda: tokens_of(closed(asked, BATCH, ask)),
        "batch": lambda: by_sampler(policy, batches),
        "one_by_one": lambda: by_sampler(policy, [[each] for each in asked]),
    }


def compare(ways: dict[str, Callable[[], int]], turns: int) -> dict[str, Any]:
    """Tokens a second of each, and of the first over each other: by the clock, and by seconds of the processor, which
    others on the machine do not lengthen. What a way returns is its tokens; its first run is not timed."""
    for way in ways.values():
        way()
    clock: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun, begun_cpu = now(), time.process_time()
            tokens = ways[name]()
            clock[name].append(tokens / (now() - begun))
            cpu[name].append(tokens / (time.process_time() - begun_cpu))
    first, *others = ways
    return {
        "tokens_per_second": {name: statistics.median(rates) for name, rates in clock.items()},
        "over": {name: paired_ratio(clock[first], clock[name]) for name in others},
        "over_cpu": {name: paired_ratio(cpu[first], cpu[name]) for name in others},
    }


def tokens_of(loop: tuple[list[Seen], float]) -> int:
    return sum(each.tokens for each in loop[0])


def workload(policy: UnifiedPolicy, config: BenchConfig) -> list[Asked]:
    """Requests of mixed lengths, some with a picture, some of those guided; an untrained model hardly ever ends."""
    chance, pattern = random.Random(config.seed), len(policy.vocabulary.image) + 1
    prompts = [story_prompt(outline) for outline in outlines(config.seed, 8)]
    asked = []
    for number in range(config.requests):
        draws = chance.random() < config.pictures
        length = chance.randint(config.short, config.long) + pattern * draws
        guidance = 3.0 if draws and chance.random() < config.guided else 1.0
        sampling = Sampling(
            length, max_images=int(draws), guidance=guidance, begin_with_image=draws, seed=number + config.seed
        )
        asked.append(Asked(chance.choice(prompts), sampling))
    return asked


def by_sampler(policy: UnifiedPolicy, groups: Sequence[Sequence[Asked]]) -> int:
    """Tokens of requests by the sampler, group after group; prompts encoded, pictures painted."""
    tokens = 0
    for group in groups:
        prompts = policy.processor.encode_all([each.prompt for each in group])
        samples = complete(policy, [Request(p, each.sampling, 0) for p, each in zip(prompts, group, strict=True)])
        policy.processor.paint([policy.processor.read(sample.ids_C.tolist()).document for sample in samples])
        tokens += sum(len(sample.ids_C) for sample in samples)
    return tokens


def asker(engine: Engine) -> Ask:
    """Asks in this process."""

    def ask(asked: Asked) -> Seen:
        seen, reply, last = Seen(time.perf_counter()), Reply(), [0.0]

        def look(event: Event) -> None:
            note(seen, event, last)

        try:
            engine.submit(asked, reply)
        except Refused:
            seen.rejected = True
            return seen
        end = reply.wait(600, look)
        seen.e2el = time.perf_counter() - seen.begun
        if isinstance(end, Ended) and end.answer.ids_C is not None:
            seen.tokens = len(end.answer.ids_C)
        return seen

    return ask


def note(seen: Seen, event: Event | str, last: list[float]) -> None:
    """What a client sees, when it does; `last`: when it saw the piece of text before."""
    moment = time.perf_counter()
    seen.ttft = seen.ttft or moment - seen.begun
    if isinstance(event, Shown) or event == "picture":
        seen.pictures += 1
        seen.first_picture = seen.first_picture or moment - seen.begun
        last[0] = 0.0
    elif isinstance(event, Text) or event == "text":
        if last[0]:
            seen.text_itl.append(moment - last[0])
        last[0] = moment


def closed(asked: Sequence[Asked], clients: int, ask: Ask) -> tuple[list[Seen], float]:
    """Every client asks again as soon as it has its answer; what they saw, and the seconds it took."""
    waiting: SimpleQueue[Asked] = SimpleQueue()
    for each in asked:
        waiting.put(each)
    seen: list[Seen] = []

    def client() -> None:
        while True:
            try:
                each = waiting.get_nowait()
            except Empty:
                return
            seen.append(ask(each))

    return seen, _together([Thread(target=client) for _ in range(min(clients, len(asked)))])


def opened(asked: Sequence[Asked], rate: float, ask: Ask, seed: int) -> tuple[list[Seen], float]:
    """They arrive by chance, so many a second, whatever has been answered."""
    chance, seen, moment = random.Random(seed), [], 0.0
    threads = []
    for each in asked:
        moment += chance.expovariate(rate)
        threads.append(Thread(target=lambda each=each, at=moment: (time.sleep(at), seen.append(ask(each)))))
    return seen, _together(threads)


def _together(threads: Sequence[Thread]) -> float:
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def summary(seen: Sequence[Seen], seconds: float, goals: dict[str, float]) -> dict[str, Any]:
    done = [each for each in seen if not each.rejected]
    times: dict[str, list[float]] = {
        "ttft": [each.ttft for each in done],
        "first_picture": [each.first_picture for each in done if each.first_picture is not None],
        "text_itl": [gap for each in done for gap in each.text_itl],
        "e2el": [each.e2el for each in done],
    }
    return {
        "requests": len(seen),
        "rejected": len(seen) - len(done),
        "seconds": seconds,
        "requests_per_second": len(done) / seconds,
        "tokens_per_second": sum(each.tokens for each in done) / seconds,
        "pictures_per_second": sum(each.pictures for each in done) / seconds,
        "goodput": sum(each.keeps(goals) for each in seen) / seconds,
        **{name: spread(found) for name, found in times.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and percentiles, in milliseconds; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    ranks = {f"p{q}": ordered[min(len(ordered) - 1, int(q / 100 * len(ordered)))] for q in PERCENTILES}
    return {name: 1000 * value for name, value in {"mean": statistics.mean(values), **ranks}.items()}


@contextmanager
def over_http(model: Model, config: BenchConfig) -> Iterator[Ask]:
    """Asks a server in this process, with a connection a request, streamed."""
    settings = ServeConfig(model="bench", port=0, slots=config.slots, waiting=config.waiting, connections=1024)
    settings.key_concurrency = 1024
    server = Server(Service(model, settings))
    ready, url = Flag(), []
    thread = Thread(target=server.serve_at, args=(listen(settings), lambda found: (url.append(found), ready.set())))
    thread.start()
    ready.wait()
    port = int(url[0].rpartition(":")[2])
    try:
        yield lambda asked: _ask_over_http(port, asked)
    finally:
        server.stop()
        thread.join()


def _ask_over_http(port: int, asked: Asked) -> Seen:
    seen, last, sampling = Seen(time.perf_counter()), [0.0], asked.sampling
    body = {
        "model": "bench",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [{"role": "user", "content": _words(asked.prompt)}],
        "max_tokens": sampling.max_new_tokens,
        "max_images": sampling.max_images,
        "guidance": sampling.guidance,
        "seed": sampling.seed,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    seen.rejected = answer.status != 200
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                note(seen, "picture" if "/v1/images/" in piece else "text", last)
        if chunk.get("usage"):
            seen.tokens = chunk["usage"]["completion_tokens"]
    seen.e2el = time.perf_counter() - seen.begun
    connection.close()
    return seen


def _words(prompt: InterleavedDocument) -> str:
    return prompt.text


def table(figures: dict[str, Any]) -> str:
    """What `limner bench serving` prints."""
    settings = figures["settings"]
    lines = [
        f"{settings['device']}, {settings['threads']} thread(s), {settings['slots']} slots; {settings['requests']} "
        f"requests, texts of {settings['short']} to {settings['long']} tokens, {settings['pictures']:.0%} drawn",
        "",
        f"{'':20}{'req/s':>7}{'tok/s':>8}{'pict/s':>7}{'good/s':>7}{'away':>6}" + "".join(f"{n:>19}" for n in NAMES),
        f"{'':55}" + f"{'ms p50 / p90 / p99':>19}" * len(NAMES),
    ]
    rows = [(f"closed, {row['clients']} clients", row) for row in figures["closed"]]
    rows += [(f"open, {row['rate']:.1f} a second", row) for row in figures["open"]]
    for name, row in rows:
        cells = f"{row['requests_per_second']:7.1f}{row['tokens_per_second']:8.0f}{row['pictures_per_second']:7.1f}"
        cells += f"{row['goodput']:7.1f}{row['rejected']:6}"
        lines.append(f"{name:20}{cells}" + "".join(f"{_times(row[name]):>19}" for name in NAMES))
    for name, words in (("together", f"{BATCH} at a time"), ("burst", f"{BATCH}, and no more")):
        lines += ["", *_ratios(words, figures[name])]
    web = figures["http"]
    ratios = ", by CPU seconds ".join(_spread(web[key]["engine"]) for key in ("over", "over_cpu"))
    lines.append(f"over HTTP, of the engine's tokens/s, texts alone: {ratios}")
    return "\n".join(lines)


def _ratios(title: str, found: dict[str, Any]) -> list[str]:
    lines = [f"{title:32}{'tokens/s':>10}{'engine over it':>24}{'by CPU seconds':>24}{'goal':>8}"]
    lines.append(f"{'the engine':32}{found['tokens_per_second']['engine']:10.0f}")
    for name, words in (("batch", "batches by the sampler"), ("one_by_one", "one after another")):
        ratios = "".join(f"{_spread(found[key][name]):>24}" for key in ("over", "over_cpu"))
        goal = f">= {GOALS_MET[name]:g}"
        lines.append(f"{words:32}{found['tokens_per_second'][name]:10.0f}{ratios}{goal:>8}")
    return lines


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _times(found: dict[str, float] | None) -> str:
    return "-" if found is None else " / ".join(f"{found[f'p{q}']:.0f}" for q in PERCENTILES)


if __name__ == "__main__":
    run_or_exit(main)
