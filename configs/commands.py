"""The commands: where each begins, and what it does: a line of `limner --help`, and the first of its own help."""

from typing import NamedTuple


class Command(NamedTuple):
    home: str
    """MODULE:FUNCTION, which is called with the words after the command's name and may return an exit code. It reads
    its options before it does anything: `--help` runs it without any library (`on_demand`)."""
    does: str


COMMANDS = {
    "demo": Command("studies.demo:main", "train and look at the embedded model: writes runs/demo/report.html"),
    "data from": Command(
        "cli:from_source",
        "turn data into shards: chats, captioned pictures, tars, tables, Markdown, your own",
    ),
    "data from-markdown": Command("cli:from_markdown", "the same as `data from markdown`, for one version more"),
    "data sniff": Command("cli:sniff", "say which source reads a file or folder, and by what command"),
    "data merge": Command("cli:merge", "put the parts of `data from --tasks` together"),
    "data stats": Command("cli:stats", "what a shard folder holds: kinds, pictures, sizes, lengths"),
    "data split": Command("cli:split", "copy a shard folder with another share held out"),
    "data sample": Command("cli:sample", "copy some documents of a shard folder, drawn at random"),
    "data dedup": Command("cli:dedup", "copy a shard folder without what is there twice"),
    "data decontaminate": Command("eval.decontaminate:main", "copy a shard folder without what benchmarks ask or show"),
    "data encode": Command("cli:encode", "cache the codes of pictures, so that training need not make them"),
    "data preview": Command("cli:preview", "an HTML page of samples of a shard folder"),
    "data validate": Command("cli:validate", "check every record of a shard folder"),
    "data insertion": Command(
        "cli:insertion", "make tasks for an inserter from documents: pictures taken out, distractors added"
    ),
    "warmup": Command(
        "train.warmup:main", "stage I: cross-entropy on interleaved, understanding and text-to-image data"
    ),
    "grpo": Command("train.grpo:main", "stage II: extended GRPO"),
    "preflight": Command("train.grpo:preflight", "check that a GRPO run can learn, and take no step"),
    "rate-prompts": Command(
        "train.grpo:rate_prompts",
        "answer the prompts of a GRPO run; keep those neither too easy nor too hard",
    ),
    "plan": Command("train.plan.command:main", "predict whether a run of GRPO or warm-up fits the memory"),
    "trajectories": Command("report.viewer.trajectories:main", "an HTML page of the groups that a GRPO run sampled"),
    "gallery": Command(
        "report.gallery:main", "answers and rewards of several checkpoints beside each other, in one HTML file"
    ),
    "insert-or-generate": Command(
        "studies.insert_or_generate:main",
        "warm-up, GRPO and a control where candidates are inserted, pictures drawn, or none",
    ),
    "study": Command("studies.study:main", "arms x seeds to one table and one figure"),
    "bench grpo": Command("studies.bench.grpo:main", "time rollout, scoring and update, and stock TRL beside it"),
    "bench large": Command(
        "studies.bench.large:main", "a random model of a billion parameters: log-probs, seconds and memory of its steps"
    ),
    "bench sampler": Command(
        "studies.bench.sampler:main", "time the sampler, and transformers' own `generate` beside it"
    ),
    "bench serving": Command(
        "studies.bench.serving:main", "time the serving engine: closed and open loops, beside the sampler alone"
    ),
    "bench lora": Command("studies.bench.lora:main", "time rollouts with an adapter, merged and not, and without one"),
    "bench data": Command(
        "studies.bench.data:main", "convert, read, wait, go on: records a second, beside webdataset and `datasets`"
    ),
    "bench insertion": Command("studies.bench.insertion:main", "train an embedded inserter, and time its two modes"),
    "bench retrieval": Command(
        "studies.bench.retrieval:main", "recall, latency and size of a vector index against exact search"
    ),
    "generate": Command("cli:generate", "write an illustrated answer to a prompt"),
    "index": Command(
        "retrieval.index.command:main", "index documents with pictures: Markdown, shards, MRAMG-Bench files"
    ),
    "search": Command("report.search:main", "find parts of them by words, by meaning and by picture"),
    "answer": Command(
        "retrieval.answer_command:main", "answer a question from an index, with its pictures and sources"
    ),
    "eval": Command("cli:evaluate", "score a model, or answers, on benchmarks or the embedded world"),
    "guard": Command("eval.capabilities:main", "compare evaluations before and after training, and stop at a loss"),
    "qualify-judge": Command(
        "eval.qualification.command:main",
        "can a judge or a reward tell better from worse: human preferences, damaged documents",
    ),
    "list": Command(
        "configs.listing:main", "what there is of rewards, benchmarks, sources, prompt forms, strategies, families"
    ),
    "convert": Command(
        "models.checkpoints.convert:main",
        "bring an original checkpoint in: Janus, Emu3, Chameleon, Liquid, VILA-U, any causal LM",
    ),
    "serve": Command(
        "serve.command:main", "answer over HTTP, in text and pictures: the API that OpenAI's clients read"
    ),
    "check": Command(
        "studies.check.command:main",
        "is a model read right, and can it be trained here: a page, and a JSON for an issue",
    ),
    "serve-rewards": Command("rewards.remote.server:main", "score completions for training runs on other machines"),
    "publish": Command("report.release.publish:main", "write a release with its model card, and upload it to the Hub"),
}
"""By name; one of two words belongs to a group (`bench`)."""


def listing(group: str = "") -> str:
    """A line for each command, or for each of a group."""
    names = [name for name in COMMANDS if f"{name} ".startswith(f"{group} ".lstrip())]
    return "\n".join(f"  {name:<21} {COMMANDS[name].does}" for name in names)


def sentence(name: str) -> str:
    """What a command does, as its help begins."""
    does = COMMANDS[name].does
    return f"{does[:1].upper()}{does[1:]}."
