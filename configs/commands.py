"""What each command does: a line of `limner --help`, and the first of the command's own help."""

COMMANDS = {
    "demo": "train and look at the embedded model: writes runs/demo/report.html",
    "data from-markdown": "turn a folder of Markdown with pictures into shards",
    "data preview": "an HTML page of samples of a shard folder",
    "data validate": "check every record of a shard folder",
    "data insertion": "make tasks for an inserter from documents: pictures taken out, distractors added",
    "warmup": "stage I: cross-entropy on interleaved, understanding and text-to-image data",
    "grpo": "stage II: extended GRPO",
    "preflight": "check that a GRPO run can learn, and take no step",
    "plan": "predict whether a GRPO run fits the memory",
    "trajectories": "an HTML page of the groups that a GRPO run sampled",
    "insert-or-generate": "warm-up, GRPO and a control where candidates are inserted, pictures drawn, or none",
    "study": "arms x seeds to one table and one figure",
    "bench grpo": "time rollout, scoring and update, and stock TRL beside it",
    "bench large": "a random model of a billion parameters: log-probs, seconds and memory of its steps",
    "bench sampler": "time the sampler, and transformers' own `generate` beside it",
    "bench insertion": "train an embedded inserter, and time its two modes",
    "bench retrieval": "recall, latency and size of a vector index against exact search",
    "generate": "write an illustrated answer to a prompt",
    "index": "index documents with pictures: Markdown, shards, MRAMG-Bench files",
    "search": "find parts of them by words, by meaning and by picture",
    "answer": "answer a question from an index, with its pictures and sources",
    "eval": "score a model, or answers, on benchmarks or the embedded world",
    "guard": "compare evaluations before and after training, and stop at a loss",
    "qualify-judge": "can a judge or a reward tell better from worse: human preferences, damaged documents",
    "convert": "bring an original checkpoint in: Janus, Emu3, Chameleon, Anole, Liquid, any causal LM",
    "serve-rewards": "score completions for training runs on other machines",
    "publish": "write a release with its model card, and upload it to the Hub",
}


def listing(group: str = "") -> str:
    """A line for each command, or for each of a group (`bench`)."""
    return "\n".join(f"  {name:<21} {does}" for name, does in COMMANDS.items() if name.startswith(group))
