"""The gallery: prompts, answers and rewards of several checkpoints beside each other, in one HTML file.

    limner gallery runs/demo --out tales.html
    limner gallery eval/before eval/after
    limner gallery answers/base answers/tuned answers/other.json
    limner gallery MODEL_BEFORE MODEL_AFTER --ask prompts.jsonl --prompts 12

Each RUN is a folder that limner has written, or documents that it saved; what a folder holds says how it is read
(`SOURCES`). With --ask it is a model, which answers the first prompts of a file for this page. A run may give several
columns: the arms of a demo; of a training run, the first and the last time that a prompt was sampled. Answers to
prompts that say the same stand beside each other. The page runs nothing and asks the network for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configs.bounds import OneOrMore, Temperature, bounded
from ..configs.errors import ArgumentParser, InputError, reading
from ..configs.terminal import say, say_next
from ..configs.whole import write_atomically
from ..models.documents.document import InterleavedDocument
from ..train.watch.trajectories import Trajectory, read_trajectories
from .answers import column, document
from .metrics import label, mapping, ordered, records
from .page import COLOURS, Html, element, note, number, page, section, table

if TYPE_CHECKING:
    from ..models.writing import Answer

TRAJECTORIES = "trajectories"
MODEL = "limner.json"
"""What a folder holds that is a model."""
RESULTS, SAMPLES = "results.json", "samples.json"
"""What `limner eval` leaves: figures, and the answers that its own page shows."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer."""

    prompt: Any
    """Document as JSON; None where a picture of it cannot be shown."""
    answer: Mapping[str, Any]
    """As in report/answers.py."""
    id: str = ""
    pictures: int | None = None
    """How many it should have, where that is known."""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Column:
    label: str
    what: str
    """Kind of run, for the table at the top."""
    answers: list[Shown]


def main(argv: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="limner gallery",
        description="Prompts, answers and rewards of several checkpoints beside each other, in one HTML file.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of `limner demo`, `eval`, or `grpo` with trajectories; saved answers (.json), or a folder of "
        "them; with --ask a model: checkpoint folder, or ORG/NAME",
    )
    parser.add_argument("--out", type=Path, default=Path("gallery.html"), metavar="FILE", help="(default gallery.html)")
    parser.add_argument(
        "--prompts", type=bounded(OneOrMore), default=24, metavar="N", help="prompts shown at most (default 24)"
    )
    parser.add_argument("--title", default="", metavar="WORDS", help="headline (default: what is shown)")
    parser.add_argument("--ask", type=Path, metavar="FILE", help="JSONL of prompts, whose first N each RUN answers now")
    parser.add_argument(
        "--temperature", type=bounded(Temperature), help="with --ask; 0 is greedy (default: the model's own settings)"
    )
    arguments = parser.parse_args(argv)
    if arguments.out.suffix != ".html":
        raise InputError(f"--out {arguments.out}: end the name in .html")
    if arguments.ask:
        columns, lead = ask(arguments.runs, arguments.ask, arguments.prompts, arguments.temperature)
    elif arguments.temperature is not None:
        raise InputError("--temperature: is for --ask FILE; these answers are written already")
    else:
        columns, lead = read_runs(arguments.runs), ""
    write_atomically(arguments.out, gallery_html(columns, arguments.prompts, arguments.title, lead))
    answers = sum(len(one.answers) for one in columns)
    models, prompts = _counted(len(columns), "checkpoint"), _counted(len(_by_prompt(columns)), "prompt")
    say(f"{arguments.out}: {_counted(answers, 'answer')} of {models}, {prompts}")
    say_next(page=arguments.out)


# ---- reading ----


def read_runs(runs: Sequence[Path]) -> list[Column]:
    """The columns of all runs, in their order. Raises InputError for one that holds nothing to show."""
    return [one for run, title in zip(runs, _titles(runs), strict=True) for one in _read(run, title)]


def _titles(runs: Sequence[Path]) -> list[str]:
    """The names of their folders, that of the run above where it is `model`; their paths where two are the same."""
    places = [run.absolute() for run in runs]
    names = [place.parent.name if place.name == "model" else place.name for place in places]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _read(run: Path, title: str) -> list[Column]:
    if (run / MODEL).is_file():
        raise InputError(f"{run}: is a model; say what to ask it: --ask PROMPTS.jsonl")
    for holds, read in SOURCES:
        if holds(run):
            found = [one for one in read(run, title) if one.answers]
            if not found:
                raise InputError(f"{run}: holds no answer to show")
            return found
    raise InputError(
        f"{run}: nothing to show; ask a model with --ask PROMPTS.jsonl, or give a folder of `limner eval`, of `limner "
        "demo`, or of a `limner grpo` run with --trajectories_every 10, or answers that `limner generate --out "
        "NAME.json` saved"
    )


def _demo(run: Path, title: str) -> list[Column]:
    """An arm each."""
    results = {file.parent.name: _json(file) for file in run.glob("arms/*/result.json")}
    columns = []
    for name in ordered(results):
        rows = records(results[name], "samples")
        answers = [
            Shown(row.get("prompt"), mapping(row, "answer"), str(row.get("id", "")), _count(row.get("pictures")))
            for row in rows
        ]
        columns.append(Column(f"{title}: {label(name)}", "demo, sampled", answers))
    return columns


def _evaluation(run: Path, title: str) -> list[Column]:
    results, samples = _json(run / RESULTS), _json(run / SAMPLES)
    highest = number(mapping(results).get("highest")) or 1.0
    answers = []
    for sample in records({"all": samples}, "all"):
        verdicts = records(sample, "verdicts")
        scores = {str(v.get("aspect")): number(v.get("score")) for v in verdicts}
        parts = {name: None if score is None else score / highest for name, score in scores.items()}
        why = tuple(f"{v.get('aspect')}: {v['failure']}" for v in verdicts if v.get("failure"))
        answer = {"document": sample.get("answer"), "components": parts}
        answers.append(Shown(sample.get("prompt"), answer, str(sample.get("id", "")), remarks=why))
    what = f"{mapping(results).get('title', 'evaluation')}, scores as shares of {highest:g}"
    return [Column(title, what, answers)]


def _trajectories(run: Path, title: str) -> list[Column]:
    """The first and the last time that a prompt was sampled: of the group the first answer, which nobody chose."""
    folder = run / TRAJECTORIES if (run / TRAJECTORIES).is_dir() else run
    first: dict[str, Shown] = {}
    last: dict[str, Shown] = {}
    for item in read_trajectories(folder):
        if item.number == 0:
            shown = _rollout(item)
            first.setdefault(_key(shown), shown)
            last[_key(shown)] = shown
    early = [shown for key, shown in first.items() if last[key] is not shown]
    what = "rollouts while training, the first of each group"
    columns = [Column(f"{title}, first time", what, early), Column(f"{title}, last time", what, [*last.values()])]
    return columns if early else [Column(title, what, [*last.values()])]


def _rollout(item: Trajectory) -> Shown:
    segments = [{"index": k, "reward": score.reward} for k, score in enumerate(item.segments)]
    answer = {"document": item.answer.to_json(), "outcome": item.outcome, "components": item.breakdown}
    remarks = (f"step {item.step}", *_cut(item.ended, item.cut_image))
    return Shown(item.prompt.to_json(), {**answer, "segments": segments}, item.prompt.id, remarks=remarks)


def _documents(run: Path, title: str) -> list[Column]:
    answers = []
    for file in [run] if run.is_file() else sorted(run.glob("*.json")):
        try:
            read = InterleavedDocument.from_json(_json(file))
        except ValueError as error:
            raise InputError(f"{file}: no document that limner saved: {error}") from None
        whole = not read.completion.segments  # nothing in it says where an answer begins
        prompt, answer = (None, read) if whole else (read.prompt.to_json(), read.completion)
        answers.append(Shown(prompt, {"document": answer.to_json()}, read.id or file.stem))
    return [Column(title.removesuffix(".json"), "saved answers", answers)]


SOURCES = (
    (lambda run: (run / SAMPLES).is_file() and (run / RESULTS).is_file(), _evaluation),
    (lambda run: any(run.glob("arms/*/result.json")), _demo),
    (lambda run: any(run.glob("step-*.jsonl")) or any(run.glob(f"{TRAJECTORIES}/step-*.jsonl")), _trajectories),
    (lambda run: run.is_file() or any(run.glob("*.json")), _documents),
)
"""How a run is read: by the first of these that finds its files."""


def ask(models: Sequence[Path], file: Path, most: int, temperature: float | None) -> tuple[list[Column], str]:
    """A column a model: one answer to each of the first prompts of the file, in its order; and what that is, in words.

    Raises InputError for a file without prompts, and for what is no model.
    """
    from ..data.prompts import read_prompts
    from ..models.checkpoints.hub import load_model

    prompts = read_prompts(file)
    first = prompts[:most]
    changes: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    columns = []
    for path, title in zip(models, _titles(models), strict=True):
        answers = load_model(path).write_many(first, **changes)
        columns.append(Column(title, "answers for this page, one a prompt", [_answered(one) for one in answers]))
    how = "with the model's own settings" if temperature is None else f"at temperature {temperature:g}"
    how += ", the likeliest token each time" if temperature == 0 else ""
    which = f"The first {len(first):,} of {len(prompts):,}" if len(first) < len(prompts) else f"All {len(first):,}"
    return columns, f"{which} prompts of {file.name}, in their order, each answered once {how}. Nothing was chosen."


def _answered(one: Answer) -> Shown:
    return Shown(
        one.prompt.to_json(),
        {"document": one.document.to_json()},
        one.prompt.id,
        remarks=_cut(one.ended, one.cut_image),
    )


def _cut(ended: bool, cut_image: bool) -> tuple[str, ...]:
    said = {"cut by the length limit": not ended, "an unfinished picture was left out": cut_image}
    return tuple(words for words, holds in said.items() if holds)


def _json(path: Path) -> Any:
    with reading(path):
        text = path.read_bytes()
    try:
        return json.loads(text)  # an answer may hold half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {error}") from None


def _count(value: Any) -> int | None:
    return None if (known := number(value)) is None else int(known)


# ---- the page ----


def gallery_html(columns: Sequence[Column], most: int, title: str = "", lead: str = "") -> str:
    """The prompts that most checkpoints have answered come first, else in the order of the runs.

    title, lead: headline and what stands below it; by default what the columns are.
    """
    prompts = _by_prompt(columns)
    chosen = sorted(prompts.values(), key=lambda answers: -len(answers))[:most]
    lead = lead or f"{_counted(len(prompts), 'prompt')}, {_counted(len(columns), 'checkpoint')}."
    if left_out := len(prompts) - len(chosen):
        lead += f" Shown are {len(chosen)}; {left_out} more are left out (--prompts)."
    shown = " and ".join(one.label for one in columns) if len(columns) <= 3 else f"{len(columns)} checkpoints"
    title = title or shown
    return page(
        title if title != shown else f"Gallery: {shown}",
        element("p", "limner gallery", style="kicker"),
        element("h1", title),
        element("p", lead, style="lead"),
        *(_entry(columns, answers) for answers in chosen),
        section("checkpoints", "The checkpoints", _table(columns, chosen)),
    )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _by_prompt(columns: Sequence[Column]) -> dict[str, dict[int, list[Shown]]]:
    """The answers to each prompt, by the number of the column."""
    found: dict[str, dict[int, list[Shown]]] = {}
    for place, one in enumerate(columns):
        for shown in one.answers:
            found.setdefault(_key(shown), {}).setdefault(place, []).append(shown)
    return found


def _key(shown: Shown) -> str:
    """What the prompt says, and where it has pictures; of one that cannot be shown its id."""
    segments = records(shown.prompt, "segments")
    said = [
        str(segment.get("text", "")).split() if segment.get("type") == "text" else "picture" for segment in segments
    ]
    return json.dumps(said) if said else f"id {shown.id}"


def _entry(columns: Sequence[Column], answers: Mapping[int, list[Shown]]) -> Html:
    first = next(iter(answers.values()))[0]
    prompt = document(first.prompt) if first.prompt is not None else note(f"{first.id}: its prompt cannot be shown.")
    if len(columns) == 1 and len(answers[0]) == 1:  # the headline says whose it is
        cells, style = [_cell(replace(columns[0], label=""), 0, answers[0])], "answers alone"
    else:
        cells = [_cell(one, place, answers.get(place, [])) for place, one in enumerate(columns)]
        style = "answers"
    return element("article", prompt, element("div", *cells, style=style), style="sample")


def _cell(one: Column, place: int, answers: Sequence[Shown]) -> Html:
    colour = place % COLOURS
    drawn = []
    for shown in answers:
        name = one.label if len(answers) == 1 else f"{one.label}, {shown.id}"
        if shown.answer.get("document") is None:
            gone = note("The answer cannot be shown: a picture of it is missing or does not open.")
            drawn.append(element("div", element("h4", name), gone, style=f"answer c{colour}"))
        else:
            drawn.append(column({"pictures": shown.pictures, "answers": {"it": shown.answer}}, "it", name, colour))
        remarks = (*shown.remarks, *(() if _pictures(shown) else ("no picture",)))
        drawn.append(note("; ".join(remarks)) if remarks and shown.answer.get("document") is not None else Html(""))
    if not drawn:
        drawn = [element("div", element("h4", one.label), note("No answer to this prompt."), style=f"answer c{colour}")]
    return element("div", *drawn)


def _pictures(shown: Shown) -> int:
    segments = records(shown.answer, "document", "segments")
    return sum(segment.get("type") == "image" for segment in segments)


def _table(columns: Sequence[Column], chosen: Sequence[Mapping[int, list[Shown]]]) -> Html:
    shared = [answers for answers in chosen if len(answers) == len(columns)]
    rows = []
    for place, one in enumerate(columns):
        answers = [shown for answers in chosen for shown in answers.get(place, [])]
        rewards = [number(shown.answer.get("outcome")) for answers in shared for shown in answers[place]]
        known = [reward for reward in rewards if reward is not None]
        mean = f"{sum(known) / len(known):.2f}" if known else Html("&ndash;")
        rows.append([one.label, one.what, f"{len(answers):,}", f"{sum(map(_pictures, answers)):,}", mean])
    words = (
        f"Mean rewards are over the {_counted(len(shared), 'prompt')} of this page that all have answered: a look, not "
        "a measurement. A dash: there is no such prompt, or no single reward."
    )
    return Html(table(["checkpoint", "what", "answers", "pictures", "mean reward"], rows, words=2) + note(words))
