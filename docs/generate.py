"""The pages that nobody writes: a page a command, from the fields and parsers that its `--help` shows; the names that
settings may take; the Python reference, which autodoc fills from docstrings. `make docs` calls it."""

import argparse
import contextlib
import dataclasses
import io
import json
import re
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from transformers import TrainingArguments
from trl.trainer.grpo_config import GRPOConfig

import limner
from limner.cli import run
from limner.configs import find_config, packaged_names, read_yaml
from limner.configs.commands import COMMANDS, sentence
from limner.configs.listing import row_of
from limner.configs.registry import NOUNS, entries

DOCS = Path(__file__).parent
FIRST = ("load", "Model", "Answer", "document", "offer", "score", "train_grpo", "write_shards")
"""What a reader of the Python reference looks for first; the other public names follow."""


class Taken(NamedTuple):
    """Settings of a library that a command takes beside its own."""

    settings: type
    page: str
    presets: tuple[str, ...]
    """Configurations whose values are shown beside the library's defaults."""


HUB_DOCS = "https://huggingface.co/docs"
TAKEN = {
    "grpo": Taken(GRPOConfig, f"{HUB_DOCS}/trl/grpo_trainer#trl.GRPOConfig", ("grpo/default", "grpo/cpu")),
    "warmup": Taken(
        TrainingArguments,
        f"{HUB_DOCS}/transformers/main_classes/trainer#transformers.TrainingArguments",
        ("warmup/documents", "warmup/paper"),
    ),
}
NEEDED = (
    *("output_dir", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "num_generations", "steps_per_generation"),
    *("temperature", "max_completion_length", "max_grad_norm", "weight_decay", "use_cpu", "bf16"),
    *("activation_checkpointing", "dataloader_num_workers", "seed", "logging_steps", "report_to", "save_steps"),
    *("save_total_limit", "resume_from_checkpoint"),
)
"""Those of the libraries' hundred that people set, in the order in which they ask for them."""
SAID_HERE = {
    "output_dir": "Folder of the run: `model`, `config.yaml`, checkpoints and curves.",
    "max_completion_length": "Most tokens of an answer, those of its pictures among them; a longer one is cut.",
    "resume_from_checkpoint": "`last`, or the folder of a checkpoint: the run goes on from there "
    "([how](../../grpo.md#stop-and-resume)).",
}
"""Where limner does more, or something else, than the library's own help says."""


def write_pages(folder: Path) -> None:
    """`commands/NAME.md` and a list of them, `names/KIND.md` for each kind of `limner list`, and `python.md`."""
    pages = {f"commands/{file_name(name)}.md": command_page(name) for name in COMMANDS}
    pages |= {f"names/{kind}.md": names_page(kind) for kind in NOUNS}
    pages |= {"commands.md": commands_page(), "python.md": python_page()}
    for place, text in pages.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:  # what did not change is not built again
            path.write_text(text, encoding="utf-8")
    for stale in {*folder.rglob("*.md")} - {folder / place for place in pages}:
        stale.unlink()


def file_name(command: str) -> str:
    return command.replace(" ", "-")


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of which `limner COMMAND --help` prints the help."""
    seen: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser) -> str:
        seen.append(parser)
        return ""

    patched = patch.object(argparse.ArgumentParser, "format_help", keep)
    with patched, contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        run([*command.split(), "--help"])
    return seen[-1]


def command_page(command: str) -> str:
    parser = parser_of(command)
    lines = [f"# limner {command}", "", sentence(command), ""]
    if pages := pages_about(command):
        lines += ["Pages that use it: " + ", ".join(f"[{page.stem}](../../{page.name})" for page in pages) + ".", ""]
    lines += ["```text", *usage_of(parser, command).splitlines(), "```", ""]
    if ready := [name for name in packaged_names() if name.startswith(f"{command}/")]:
        lines += ["## Configurations that come with it", "", *(f"- `{name}`: {about(name)}" for name in ready), ""]
    for group in parser._action_groups:
        if (group.title or "").startswith("all settings of "):
            lines += taken(command, str(group.title).removeprefix("all settings of "))
            continue
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if actions or group.description:
            title = {"options": "Options", "positional arguments": "Arguments"}.get(group.title or "", group.title)
            lines += [f"## {title}", ""] + ([plain(group.description), ""] if group.description else [])
            lines += [line for action in actions for line in option(action)]
    return "\n".join(lines)


def pages_about(command: str, most: int = 4) -> list[Path]:
    """The written pages in which the command stands: its own first, then those that name it most."""
    said = {page: page.read_text(encoding="utf-8").count(f"limner {command} ") for page in sorted(DOCS.glob("*.md"))}
    found = sorted((page for page, times in said.items() if times), key=lambda page: -said[page])
    return sorted(found, key=lambda page: page.stem != command)[:most]


def usage_of(parser: argparse.ArgumentParser, command: str) -> str:
    """The first paragraph: what follows in it is told on the page."""
    text = parser.format_usage().removeprefix("usage: ").split("\n\n")[0]
    return text.replace("%(prog)s", f"limner {command}").strip()


def option(action: argparse.Action) -> Iterator[str]:
    """A term and what it means, as a definition list of MyST has them."""
    value = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices and not action.metavar:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    names = ", ".join(action.option_strings)
    if not names:
        name = value if isinstance(value, str) else " ".join(value)
    else:
        name = names if action.nargs == 0 else f"{names} {value}"
    said = plain((action.help or "").replace("%%", "%")) or "-"
    yield from (f"`{name}`", f": {said}", "")


def taken(command: str, name: str) -> Iterator[str]:
    """The settings of a library's dataclass that people need: its defaults, what our presets say, its own words."""
    title = f"Settings of `{name}`"
    yield from (f"## {title}", "")
    if command not in TAKEN:
        lists = [
            f"[limner {other}]({other}.md)" for other, its in TAKEN.items() if name.endswith(its.settings.__name__)
        ]
        yield from (
            f"They are flags and lines of a configuration, too; those that people need: {' or '.join(lists)}.",
            "",
        )
        return
    settings, page, presets = TAKEN[command]
    given = {preset: read_yaml(find_config(preset), preset) for preset in presets}
    yield from (
        "All of them are flags and lines of a configuration, too. Those that people need, with the values that ready "
        f"configurations set; the others are on [its page]({page}) and in `limner {command} --help-all`.",
        "",
    )
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for field in (fields[needed] for needed in NEEDED if needed in fields):
        values = [("default", field.default)]
        values += [(f"`{preset}`", mapping[field.name]) for preset, mapping in given.items() if field.name in mapping]
        shown = ", ".join(f"{where} `{value}`" for where, value in values if value is not None)
        said = SAID_HERE.get(field.name) or plain(first_words(field.metadata["help"].replace("%%", "%")))
        yield from (f"`--{field.name} VALUE`", f": {said}" + (f" ({shown})" if shown else ""), "")


def first_words(text: str, least: int = 40) -> str:
    """The first sentence, and the next where that one says next to nothing."""
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(text.split()))
    return sentences[0] if len(sentences[0]) >= least else " ".join(sentences[:2])


def plain(text: str) -> str:
    """What a help says is text: outside its code spans nothing in it is markup. Pages that it names become links."""
    spans = " ".join(text.split()).split("`")
    if len(spans) % 2 == 0:
        return escaped(" ".join(text.split()))
    return "".join(f"`{part}`" if odd % 2 else escaped(part) for odd, part in enumerate(spans))


def escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*_<>[]{}|$#~^" else char for char in text)


def about(name: str) -> str:
    """The first words of a packaged configuration's own comment."""
    lines = find_config(name).read_text(encoding="utf-8").splitlines()
    words = takewhile(lambda line: line.startswith("# ") and not re.match(r"# [A-Z][a-z]+: ", line), lines)
    return plain(" ".join(line.removeprefix("# ") for line in words)).removesuffix(".") or "-"


def commands_page() -> str:
    rows = [f"- [limner {name}](commands/{file_name(name)}.md): {plain(COMMANDS[name].does)}" for name in COMMANDS]
    return "\n".join(["# Every command", "", *rows, "", toctree(f"commands/{file_name(name)}" for name in COMMANDS)])


def names_page(kind: str) -> str:
    """`limner list KIND`, as a page."""
    lines = [f"# limner list {kind}", "", f"What may stand where {NOUNS[kind]} is named, with its options.", ""]
    for entry in entries(kind).values():
        row = row_of(entry)
        lines += [f"## {row['name']}", "", plain(row["does"]), ""]
        for setting in row["options"]:
            default = "needed" if setting["required"] else f"default `{json.dumps(setting['default'])}`"
            said = ", ".join(part for part in (plain(setting["type"]), setting["range"], default) if part)
            lines += [f"`{setting['name']}`", f": {said}. {plain(setting['help'])}".rstrip(), ""]
    return "\n".join(lines)


def python_page() -> str:
    lines = ["# Python reference", "", "[python.md](../python.md) shows them at work; all are had from `limner`.", ""]
    for name in [*FIRST, *sorted({*limner.__all__} - {*FIRST})]:
        kind = "class" if isinstance(getattr(limner, name), type) else "function"
        members = ["   :members:", "   :undoc-members:"] if kind == "class" else []
        lines += [f"## {name}", "", "```{eval-rst}", f".. auto{kind}:: limner.{name}", *members, "```", ""]
    return "\n".join(lines)


def toctree(names: Iterable[str], caption: str = "", hidden: bool = True) -> str:
    options = [":hidden:"] * hidden + [f":caption: {caption}"] * bool(caption)
    return "\n".join(["```{toctree}", *options, "", *names, "```", ""])
