"""The `limner` command. Each subcommand only parses and calls; imports wait until it is known which."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .configs.commands import COMMANDS, listing
from .configs.errors import ArgumentParser, InputError, run_or_exit
from .configs.schema import did_you_mean

if TYPE_CHECKING:
    from .data.insertion.placements import Candidate

USAGE = f"""usage: limner COMMAND [...]

{listing()}

`limner COMMAND --help` says more. Train on several processes with `torchrun --nproc-per-node N -m limner.train.warmup`
(or `limner.train.grpo`) and the same flags."""


def main() -> None:
    # DeepSpeed, where it is installed, says at its import that there is no GPU: on stdout, which is for answers.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    try:
        run_or_exit(run)
    except BrokenPipeError:  # `limner ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def run(argv: Sequence[str]) -> None:
    commands: dict[str, Callable[[Sequence[str]], None]] = {
        "demo": _demo,
        "data": _data,
        "warmup": _warmup,
        "grpo": _grpo,
        "preflight": _preflight,
        "plan": _plan,
        "trajectories": _trajectories,
        "insert-or-generate": _insert_or_generate,
        "study": _study,
        "bench": _bench,
        "generate": _generate,
        "index": _index,
        "search": _search,
        "answer": _answer,
        "eval": _eval,
        "guard": _guard,
        "qualify-judge": _qualify_judge,
        "convert": _convert,
        "serve-rewards": _serve_rewards,
        "publish": _publish,
    }
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return
    if argv[0] not in commands:
        hint = did_you_mean(argv[0], commands) or f"known: {', '.join(commands)}"
        raise InputError(f"{argv[0]!r} is no command; {hint}")
    commands[argv[0]](argv[1:])


def _demo(argv: Sequence[str]) -> None:
    from .studies.demo import main

    main(argv)


def _warmup(argv: Sequence[str]) -> None:
    from .train.warmup import main

    main(argv)


def _grpo(argv: Sequence[str]) -> None:
    from .train.grpo import main

    main(argv)


def _preflight(argv: Sequence[str]) -> None:
    from .train.grpo import preflight

    preflight(argv)


def _plan(argv: Sequence[str]) -> None:
    from .train.plan.command import main

    main(argv)


def _trajectories(argv: Sequence[str]) -> None:
    from .report.viewer.trajectories import main

    main(argv)


def _insert_or_generate(argv: Sequence[str]) -> None:
    from .studies.insert_or_generate import main

    main(argv)


def _study(argv: Sequence[str]) -> None:
    from .studies.study import main

    main(argv)


def _bench(argv: Sequence[str]) -> None:
    if argv and argv[0] in ("-h", "--help"):
        print(f"usage: limner bench NAME [--json FILE] [...]\n\n{listing('bench')}")
        return
    known = [name.removeprefix("bench ") for name in COMMANDS if name.startswith("bench ")]
    if not argv or argv[0] not in known:
        raise InputError(f"limner bench: say what to time; known: {', '.join(known)}")
    if argv[0] == "grpo":
        from .studies.bench.grpo import main
    elif argv[0] == "large":
        from .studies.bench.large import main
    elif argv[0] == "insertion":
        from .studies.bench.insertion import main
    elif argv[0] == "retrieval":
        from .studies.bench.retrieval import main
    else:
        from .studies.bench.sampler import main

    main(argv[1:])


def _convert(argv: Sequence[str]) -> None:
    from .models.checkpoints.convert import main

    main(argv)


def _index(argv: Sequence[str]) -> None:
    from .retrieval.index.command import main

    main(argv)


def _search(argv: Sequence[str]) -> None:
    from .report.search import main

    main(argv)


def _eval(argv: Sequence[str]) -> None:
    from .eval.run import main
    from .report.evaluation import write_report

    for folder in main(argv):
        print(write_report(folder))


def _answer(argv: Sequence[str]) -> None:
    from .retrieval.answer_command import main

    main(argv)


def _guard(argv: Sequence[str]) -> None:
    from .eval.capabilities import main

    if code := main(argv):
        raise SystemExit(code)


def _qualify_judge(argv: Sequence[str]) -> None:
    from .eval.qualification.command import main

    main(argv)


def _serve_rewards(argv: Sequence[str]) -> None:
    from .rewards.remote.server import main

    main(argv)


def _publish(argv: Sequence[str]) -> None:
    from .report.release.publish import main

    main(argv)


def _data(argv: Sequence[str]) -> None:
    parser = ArgumentParser(prog="limner data", description="Shards of documents.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{from-markdown,preview,validate,insertion}"
    )
    command = commands.add_parser("from-markdown", help=COMMANDS["data from-markdown"])
    command.add_argument("source", type=Path, metavar="SRC")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of shards to write")
    command.add_argument("--heldout-share", type=float, default=0.1, help="share of documents held out (default 0.1)")
    command.add_argument("--overwrite", action="store_true", help="replace the shards that DIR holds")
    command = commands.add_parser("preview", help=COMMANDS["data preview"])
    command.add_argument("directory", type=Path, metavar="DIR")
    command.add_argument("--out", type=Path, metavar="FILE", help="page to write (default DIR-preview.html beside DIR)")
    command.add_argument("--samples", type=int, default=24, help="documents shown (default 24)")
    command.add_argument("--split", choices=("train", "heldout"), default="train")
    command = commands.add_parser("validate", help=COMMANDS["data validate"])
    command.add_argument("directory", type=Path, metavar="DIR")
    command = commands.add_parser("insertion", help=COMMANDS["data insertion"])
    command.add_argument("source", type=Path, metavar="SRC", help="shards, MRAMG files, or a folder of Markdown")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of tasks to write")
    command.add_argument("--distractors", type=int, default=6, help="wrong candidates of a task (default 6)")
    command.add_argument("--hard", type=Path, metavar="INDEX", help="index of `limner index` that finds half of them")
    command.add_argument("--abstain-share", type=float, default=0.1, help="tasks without gold (default 0.1)")
    command.add_argument("--heldout-share", type=float, default=0.1, help="documents held out (default 0.1)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--overwrite", action="store_true", help="replace what DIR holds")
    arguments = parser.parse_args(argv)
    {
        "from-markdown": _from_markdown,
        "preview": _preview,
        "validate": _validate,
        "insertion": _insertion,
    }[arguments.command](arguments)


def _from_markdown(arguments: argparse.Namespace) -> None:
    from .data.sources.markdown import convert

    report = convert(
        arguments.source, arguments.out, heldout_share=arguments.heldout_share, overwrite=arguments.overwrite
    )
    print(report.summary())


def _preview(arguments: argparse.Namespace) -> None:
    from .data.preview import write_preview

    page = arguments.out or arguments.directory.with_name(f"{arguments.directory.absolute().name}-preview.html")
    shown = write_preview(arguments.directory, page, arguments.samples, arguments.split)
    print(f"{page}: {shown} document{'s' * (shown != 1)}")


def _insertion(arguments: argparse.Namespace) -> None:
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
    print(report)


def _found_in(folder: Path) -> Callable[[str, int], Sequence[Candidate]]:
    """Pictures that an index finds for a text, so many at most."""
    from .retrieval.answering import candidates_of
    from .retrieval.index.store import Index

    index = Index.open(folder)
    return lambda text, limit: candidates_of(index.search(text, limit=limit))[0]


def _validate(arguments: argparse.Namespace) -> None:
    from .data.shards import read_index
    from .data.validate import validate

    kinds = read_index(arguments.directory).kinds
    problems = validate(arguments.directory)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{arguments.directory}: {problems[0]}{more}")
    total = sum(sum(counts.values()) for counts in kinds.values())
    parts = [f"{split} {kind} {n}" for split, counts in kinds.items() for kind, n in counts.items() if n]
    print(f"{arguments.directory}: {total} record{'s are' if total != 1 else ' is'} sound ({', '.join(parts)})")


def _generate(argv: Sequence[str]) -> None:
    parser = ArgumentParser(prog="limner generate", description="Writes an illustrated answer to a prompt.")
    parser.add_argument("--model", required=True, metavar="MODEL", help="checkpoint folder, or ORG/NAME on the Hub")
    parser.add_argument("--prompt", required=True, help="what to write about")
    parser.add_argument(
        "--image", action="append", type=Path, default=[], help="a picture before the prompt (repeatable)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="answer.html, answer.md or answer.json")
    settings = parser.add_argument_group("sampling", "Where none is given, the model's own settings hold.")
    settings.add_argument("--temperature", type=float, help="0 is greedy")
    settings.add_argument("--top-p", type=float, help="sample from the smallest set of tokens of this probability")
    settings.add_argument("--top-k", type=int, help="sample from so many likeliest tokens; 0 is all")
    settings.add_argument("--guidance", type=float, help="classifier-free guidance of pictures; 1 is none")
    settings.add_argument("--max-new-tokens", type=int, help="longest answer, pictures included")
    settings.add_argument("--max-images", type=int, help="most pictures of an answer")
    settings.add_argument("--seed", type=int, help="another seed, another answer")
    arguments = parser.parse_args(argv)

    from .models.checkpoints.hub import load_model
    from .models.documents.rendering import check_suffix
    from .models.sampler.generation import Sampling
    from .models.writing import make_prompt

    names = ("temperature", "top_p", "top_k", "guidance", "max_new_tokens", "max_images", "seed")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    check_suffix(arguments.out)
    Sampling(**given)  # a fault should not wait for the model
    prompt = make_prompt(arguments.prompt, arguments.image)
    answer = load_model(arguments.model).write(prompt, **given)
    answer.save(arguments.out)
    notes = {
        "cut at the limit of tokens, raise --max-new-tokens": not answer.ended,
        "an unfinished picture was left out": answer.cut_image,
        "word the prompt as the model's training data do, or try another --seed": not answer.images,
    }
    count = len(answer.images)
    said = [f"{count} picture{'s' * (count != 1)}", *(note for note, holds in notes.items() if holds)]
    print(f"{arguments.out}: {'; '.join(said)}")


if __name__ == "__main__":
    main()
