"""The `limner` command. Only the module of the command that is called is imported, and for its `--help` none."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .configs.bounds import Guidance, NoneOrMore, OneOrMore, Seed, Share, Temperature, TopP, bounded
from .configs.commands import COMMANDS, listing, sentence
from .configs.errors import ArgumentParser, InputError, run_or_exit
from .configs.on_demand import on_demand
from .configs.schema import did_you_mean
from .configs.terminal import one_line, say, say_next

if TYPE_CHECKING:
    from argparse import Namespace

    from .data.insertion.placements import Candidate
    from .data.shards import ShardIndex

HELP = ("-h", "--help")
USAGE = f"""usage: limner COMMAND [...]

{listing()}

`limner COMMAND --help` says more, `limner --version` which limner this is. Train on several processes with
`torchrun --nproc-per-node N -m limner.train.warmup` (or `limner.train.grpo`) and the same flags."""


def main() -> None:
    run_or_exit(run)


def run(argv: Sequence[str]) -> None:
    name, words = (argv[0], argv[1:]) if argv else ("help", ())
    if name in (*HELP, "help"):
        say(USAGE)
        return
    if name == "--version":
        say(f"limner {_version()}")
        return
    first_words = dict.fromkeys(known.partition(" ")[0] for known in COMMANDS)
    if name not in first_words:
        hint = did_you_mean(name, first_words) or f"known: {', '.join(first_words)}"
        raise InputError(f"{name!r} is no command; {hint}")
    if name not in COMMANDS:
        if words and words[0] in HELP:
            say(f"usage: limner {name} NAME [...]\n\n{listing(name)}")
            return
        members = [known.removeprefix(f"{name} ") for known in COMMANDS if known.startswith(f"{name} ")]
        if not words or words[0] not in members:
            hint = did_you_mean(words[0], members) if words else ""
            raise InputError(f"limner {name}: say which; {hint or 'known: ' + ', '.join(members)}")
        name, words = f"{name} {words[0]}", words[1:]
    if code := _start(COMMANDS[name].home, words):
        raise SystemExit(code)


def _start(home: str, words: Sequence[str]) -> int | None:
    module, function = home.split(":")
    module = f"{__package__}.{module}"
    if any(word in HELP for word in words) and not {"--", "--help-all"} & {*words}:
        with contextlib.suppress(Exception):  # else it takes some seconds more; that it does not is tested
            return getattr(on_demand(module), function)(words)
    return getattr(importlib.import_module(module), function)(words)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("limner")
    except PackageNotFoundError:
        return "(not installed: run from its sources)"


def evaluate(argv: Sequence[str]) -> int:
    """Exit code: 1 where a run has not one score."""
    from .eval.run import main
    from .report.evaluation import no_score, write_report

    faults = 0
    for folder in (folders := main(argv)):
        said = write_report(folder)
        if reason := no_score(folder):
            faults += 1
            say(f"limner: error: {one_line(reason)}", to_stderr=True, flush=True)
        say(said)  # its last line is the page
    if folders and not faults:
        say_next("limner", "guard", "RUN_BEFORE", "RUN_AFTER", "--limits", "{FIGURE: LOSS}")
    return int(faults > 0)


def from_source(argv: Sequence[str]) -> None:
    parser = _parser("data from")
    parser.add_argument("kind", metavar="SOURCE", help="one of `limner list source`, or path/to/file.py:Name")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the source")
    parser.add_argument("--images", default="", metavar="ROOT", help="folder of the pictures that its records name")
    _convert(parser, argv)


def from_markdown(argv: Sequence[str]) -> None:
    parser = _parser("data from-markdown")
    parser.set_defaults(kind="markdown", set=[], images="")
    _convert(parser, argv)


def _convert(parser: ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="what it reads")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of shards to write")
    parser.add_argument(
        "--heldout-share", type=bounded(Share), default=0.1, help="share of documents held out (default 0.1)"
    )
    parser.add_argument("--keep-duplicates", action="store_true", help="give a second document of an id another id")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that DIR holds")
    parser.add_argument("--tasks", type=bounded(OneOrMore), metavar="N", help="cut the work, and do one of N tasks")
    parser.add_argument("--task", type=bounded(NoneOrMore), metavar="K", help="which, from 0; `data merge` ends it")
    parser.add_argument("--workers", type=bounded(OneOrMore), metavar="W", help="cut the work, for W processes here")
    parser.add_argument(
        "--unit-bytes",
        type=bounded(OneOrMore),
        metavar="B",
        help="of lines or rows that are cut as one (default 64 MiB)",
    )
    parser.add_argument(
        "--dry-run", type=bounded(OneOrMore), metavar="N", help="say what the first N records give, and write nothing"
    )
    arguments = parser.parse_args(argv)
    target: Path | None = arguments.out
    if target is None and arguments.dry_run is None:
        parser.error("the following arguments are required: --out")

    from .data.conversion import convert, open_source, setting, try_source
    from .data.shards import read_index

    options = dict(map(setting, arguments.set)) | ({"images": arguments.images} if arguments.images else {})
    source = open_source(arguments.kind, options)
    keep = arguments.keep_duplicates
    if target is None or arguments.dry_run is not None:
        say(try_source(source, arguments.source, arguments.dry_run, keep).table())
        say("nothing was written; next: the same command with --out DIR, without --dry-run")
        return
    if arguments.tasks or arguments.workers:
        _in_units(arguments, target, options)
        return
    share, overwrite = arguments.heldout_share, arguments.overwrite
    report = convert(source, arguments.source, target, heldout_share=share, keep_duplicates=keep, overwrite=overwrite)
    say(f"{report.summary()}\nwrote {target}: {_by_split(read_index(target))}")
    _say_preview(target)


def _in_units(arguments: Namespace, target: Path, options: dict) -> None:
    """`--tasks N --task K` of one task, `--workers W` of all on this machine."""
    from .data.jobs.parts import merge, run_units
    from .data.jobs.plan import UNIT_BYTES, open_plan, parts_of, task_units
    from .data.shards.writing import check_target

    if (arguments.tasks is None) != (arguments.task is None):
        raise InputError("--tasks and --task: give both; tasks are numbered from 0")
    if arguments.keep_duplicates:
        raise InputError("--keep-duplicates: not with --tasks or --workers; give the records ids of their own")
    check_target(target, arguments.overwrite)
    size = arguments.unit_bytes or UNIT_BYTES
    plan = open_plan(arguments.kind, arguments.source, options, target, arguments.heldout_share, size)
    units = range(len(plan.units)) if arguments.tasks is None else task_units(plan, arguments.tasks, arguments.task)
    done = run_units(plan, target, units, arguments.workers or 1, say)
    say(f"{done} of {len(units)} units done, {len(units) - done} were there")
    if arguments.tasks and not units:
        say(
            f"the work is cut into {len(plan.units)} units, fewer than tasks; a smaller --unit-bytes makes more of them"
        )
    if arguments.tasks is None:
        _say_merged(target, merge(target, arguments.overwrite))
    else:
        say(f"when all tasks are done: limner data merge {target}; until then the parts are in {parts_of(target)}")


def _say_merged(target: Path, index: ShardIndex) -> None:
    total = sum(shard.records for shard in index.shards)
    out = ", ".join(f"{rule} {count}" for rule, count in index.report["rules"]["left out"].items())
    say(f"{target}: {total} documents in {len(index.shards)} shards" + (f"; left out: {out}" if out else ""))
    _say_preview(target)


def _by_split(index: ShardIndex) -> str:
    return ", ".join(f"{split} {sum(kinds.values())}" for split, kinds in index.kinds.items() if kinds)


def _say_preview(target: Path) -> None:
    say_next("limner", "data", "preview", target)


def _say_warmup(target: str | Path) -> None:
    say_next("limner", "warmup", "--config", "warmup/documents", "--data", target)


def stats(argv: Sequence[str]) -> None:
    parser = _parser("data stats")
    parser.add_argument("directory", metavar="DIR", help="folder of shards, or the address of one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    arguments = parser.parse_args(argv)

    import json

    from .configs.whole import write_atomically
    from .data.jobs.subsets import stats, stats_table

    figures = stats(arguments.directory)
    say(stats_table(figures))
    if arguments.json:
        write_atomically(arguments.json, json.dumps(figures, indent=1) + "\n")
        say(f"wrote {arguments.json}")
    _say_warmup(arguments.directory)


def subset(name: str, argv: Sequence[str]) -> None:
    parser = _parser(f"data {name}")
    parser.add_argument("directory", metavar="DIR", help="folder of shards, or the address of one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR2", help="folder of shards to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that DIR2 holds")
    if name == "split":
        parser.add_argument("--heldout-share", type=bounded(Share), required=True, help="share of documents held out")
    elif name == "sample":
        parser.add_argument("--count", type=bounded(OneOrMore), required=True, help="documents to train on")
        parser.add_argument("--seed", type=bounded(Seed), default=0)
    else:
        parser.add_argument("--near", action="store_true", help="pictures that look the same are the same")
    arguments = parser.parse_args(argv)

    from .data.jobs import subsets

    options = vars(arguments)
    source, target, overwrite = (options.pop(key) for key in ("directory", "out", "overwrite"))
    index = getattr(subsets, name)(source, target, *options.values(), overwrite=overwrite)
    say(f"{target}: {_by_split(index)} documents")
    _say_warmup(target)


def split(argv: Sequence[str]) -> None:
    subset("split", argv)


def sample(argv: Sequence[str]) -> None:
    subset("sample", argv)


def dedup(argv: Sequence[str]) -> None:
    subset("dedup", argv)


def merge(argv: Sequence[str]) -> None:
    parser = _parser("data merge")
    parser.add_argument("directory", type=Path, metavar="DIR", help="what the tasks were given as --out")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that DIR holds")
    parser.add_argument("--keep-parts", action="store_true", help="copy the parts, and leave them there")
    arguments = parser.parse_args(argv)

    from .data.jobs.parts import merge

    _say_merged(arguments.directory, merge(arguments.directory, arguments.overwrite, arguments.keep_parts))


def encode(argv: Sequence[str]) -> None:
    parser = _parser("data encode")
    parser.add_argument("directory", metavar="DIR", help="folder of shards, or the address of one")
    parser.add_argument("--model", required=True, metavar="MODEL", help="checkpoint whose image tokenizer makes codes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR2", help="folder of shards to write")
    parser.add_argument("--batch", type=bounded(OneOrMore), default=64, help="pictures encoded at a time (default 64)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; by default the GPU, where there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the shards that DIR2 holds")
    arguments = parser.parse_args(argv)

    import torch

    from .data.shards import encode_shards
    from .models.checkpoints.folder import load_tokenizer
    from .models.checkpoints.hub import find_checkpoint

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(find_checkpoint(arguments.model), device)
    options = {"batch": arguments.batch, "overwrite": arguments.overwrite}
    done = encode_shards(arguments.directory, arguments.out, tokenizer, **options)
    kept = f", {done.kept} shards were done before" if done.kept else ""
    rate = done.pictures / max(done.seconds, 1e-9)
    say(f"{arguments.out}: {done.pictures} pictures in {done.seconds:.1f} s on {device}, {rate:.0f} a second{kept}")
    _say_warmup(arguments.out)


def sniff(argv: Sequence[str]) -> None:
    parser = _parser("data sniff")
    parser.add_argument("source", type=Path, metavar="SRC", help="a file, a folder, or ORG/NAME on the Hub")
    parser.add_argument("--images", default="", metavar="ROOT", help="folder of the pictures that its records name")
    arguments = parser.parse_args(argv)

    from .data.jobs.sniff import sniff

    say(sniff(arguments.source, arguments.images))


def preview(argv: Sequence[str]) -> None:
    parser = _parser("data preview")
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write (default DIR-preview.html beside DIR)")
    parser.add_argument("--samples", type=bounded(NoneOrMore), default=24, help="documents shown (default 24)")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    arguments = parser.parse_args(argv)

    from .data.preview import write_preview

    page = arguments.out or arguments.directory.with_name(f"{arguments.directory.absolute().name}-preview.html")
    shown = write_preview(arguments.directory, page, arguments.samples, arguments.split)
    say(f"{page}: {shown} document{'s' * (shown != 1)}")
    say_next(page=page)


def insertion(argv: Sequence[str]) -> None:
    parser = _parser("data insertion")
    parser.add_argument("source", type=Path, metavar="SRC", help="shards, MRAMG files, or a folder of Markdown")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of tasks to write")
    parser.add_argument(
        "--distractors", type=bounded(NoneOrMore), default=6, help="wrong candidates of a task (default 6)"
    )
    parser.add_argument("--hard", type=Path, metavar="INDEX", help="index of `limner index` that finds half of them")
    parser.add_argument("--abstain-share", type=bounded(Share), default=0.1, help="tasks without gold (default 0.1)")
    parser.add_argument("--heldout-share", type=bounded(Share), default=0.1, help="documents held out (default 0.1)")
    parser.add_argument("--seed", type=bounded(Seed), default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace what DIR holds")
    arguments = parser.parse_args(argv)

    from .data.insertion.tasks import write_source

    report = write_source(
        arguments.source,
        arguments.out,
        distractors=arguments.distractors,
        abstain_share=arguments.abstain_share,
        heldout_share=arguments.heldout_share,
        seed=arguments.seed,
        hard=_found_in(arguments.hard) if arguments.hard else None,
        overwrite=arguments.overwrite,
    )
    say(report)
    tasks = arguments.out / "train.jsonl"
    say_next("limner", "grpo", "--config", "grpo/inserter-text", "--model", "MODEL", "--prompts", tasks)


def validate(argv: Sequence[str]) -> None:
    parser = _parser("data validate")
    parser.add_argument("directory", type=Path, metavar="DIR")
    arguments = parser.parse_args(argv)

    from .data.shards import read_index
    from .data.validate import validate

    kinds = read_index(arguments.directory).kinds
    problems = validate(arguments.directory)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{arguments.directory}: {problems[0]}{more}")
    total = sum(sum(counts.values()) for counts in kinds.values())
    parts = [f"{split} {kind} {n}" for split, counts in kinds.items() for kind, n in counts.items() if n]
    say(f"{arguments.directory}: {total} record{'s are' if total != 1 else ' is'} sound ({', '.join(parts)})")
    _say_warmup(arguments.directory)


def generate(argv: Sequence[str]) -> None:
    parser = _parser("generate")
    parser.add_argument("--model", required=True, metavar="MODEL", help="checkpoint folder, or ORG/NAME on the Hub")
    parser.add_argument("--prompt", required=True, help="what to write about")
    parser.add_argument(
        "--image", action="append", type=Path, default=[], help="a picture before the prompt (repeatable)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="answer.html, answer.md or answer.json")
    settings = parser.add_argument_group("sampling", "Where none is given, the model's own settings hold.")
    settings.add_argument("--temperature", type=bounded(Temperature), help="0 is greedy")
    settings.add_argument(
        "--top-p", type=bounded(TopP), help="sample from the smallest set of tokens of this probability"
    )
    settings.add_argument("--top-k", type=bounded(NoneOrMore), help="sample from so many likeliest tokens; 0 is all")
    settings.add_argument("--guidance", type=bounded(Guidance), help="classifier-free guidance of pictures; 1 is none")
    settings.add_argument("--max-new-tokens", type=bounded(OneOrMore), help="longest answer, pictures included")
    settings.add_argument("--max-images", type=bounded(NoneOrMore), help="most pictures of an answer")
    settings.add_argument("--seed", type=bounded(Seed), help="another seed, another answer")
    arguments = parser.parse_args(argv)

    from .models.checkpoints.hub import load_model
    from .models.documents.forms import make_prompt
    from .models.documents.rendering import check_suffix
    from .models.sampler.generation import Sampling

    names = ("temperature", "top_p", "top_k", "guidance", "max_new_tokens", "max_images", "seed")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    check_suffix(arguments.out)
    Sampling(**given)  # a fault should not wait for the model
    prompt = make_prompt(arguments.prompt, arguments.image)
    model = load_model(arguments.model)
    answer = model.write(prompt, **given)
    answer.save(arguments.out)
    notes = {
        "cut at the limit of tokens, raise --max-new-tokens": not answer.ended,
        "an unfinished picture was left out": answer.cut_image,
        "word the prompt as the model's training data do, or try another --seed": not answer.images,
    }
    count = len(answer.images)
    said = [f"{count} picture{'s' * (count != 1)}", *(note for note, holds in notes.items() if holds)]
    say(f"{arguments.out}: {'; '.join(said)}")
    if model.about.knows:
        say(f"of {arguments.model}: {model.about.knows}")
    if arguments.out.suffix == ".html":
        say_next(page=arguments.out)
    else:
        say_next("limner", "serve", "--model", arguments.model)


def _found_in(folder: Path) -> Callable[[str, int], Sequence[Candidate]]:
    """Pictures that an index finds for a text, so many at most."""
    from .retrieval.answering import candidates_of
    from .retrieval.index.store import Index

    index = Index.open(folder)
    return lambda text, limit: candidates_of(index.search(text, limit=limit))[0]


def _parser(command: str) -> ArgumentParser:
    return ArgumentParser(prog=f"limner {command}", description=sentence(command))


if __name__ == "__main__":
    main()
