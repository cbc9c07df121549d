"""What README and docs point at is there; what their code blocks say is taken by the commands that there are."""

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import limner.configs
from limner.cli import run
from limner.configs import registry
from limner.configs.commands import COMMANDS
from limner.configs.errors import ArgumentParser, InputError

from .data_files import put
from .pages import PAGES, ROOT, WITH_BLOCKS, Block, anchors_of, blocks_of, commands_of, promise_of, targets_of

TRAINING = ("warmup", "grpo", "preflight", "rate-prompts", "plan")
CONFIGURED = {
    **dict.fromkeys(("grpo", "warmup", "serve", "eval", "serve-rewards"), ("--config",)),
    "qualify-judge": ("--documents", "DIR", "--config"),
    "study": (),
}
"""Commands whose settings a page may show as YAML, and what stands before the file."""
OTHERS = {"git", "cd", "hf", "unzip", "tar", "for", "do", "done", "vllm", "source", "export", "sbatch", ".ci/run"}
"""Programs that are not ours: what they are told is not looked at."""


class Taken(Exception):
    """The options were read."""


@pytest.fixture
def reads(tmp_path, monkeypatch):
    """Calls a command until it has read its options. Raises InputError where it does not take them."""
    monkeypatch.chdir(tmp_path)
    parse, parse_args = limner.configs.parse, ArgumentParser.parse_args

    def parsed(*given, **named):
        parse(*given, **named)
        raise Taken

    def parsed_args(*given, **named):
        parse_args(*given, **named)
        raise Taken

    def read(words: Sequence[str]) -> None:
        name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        if name in COMMANDS:
            importlib.import_module(f"limner.{COMMANDS[name].home.partition(':')[0]}")
        for module in [module for key, module in sys.modules.items() if key.startswith("limner.")]:
            if getattr(module, "parse", None) is parse:
                monkeypatch.setattr(module, "parse", parsed)
        monkeypatch.setattr(ArgumentParser, "parse_args", parsed_args)
        for word in words:
            if word.endswith(".yaml") and "/" not in word and not Path(word).exists():
                Path(word).write_text("{}\n")  # a file that the reader has
        if {"-h", "--help"} & {*words}:
            assert name in COMMANDS
            return
        with pytest.raises(Taken):
            run([*words, *(("--use_cpu", "true") if name in TRAINING else ())])

    yield read
    for key, module in list(sys.modules.items()):  # one that was imported meanwhile has the stand-in for good
        if key.startswith("limner.") and vars(module).get("parse") is parsed:
            module.parse = parse


def broken_links(page: Path) -> Iterator[str]:
    for target in targets_of(page):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            yield target
    for name in re.findall(r"\btests/[\w/]+\.py", page.read_text(encoding="utf-8")):
        if not (ROOT / name).is_file():
            yield name


def faults_of(block: Block, read) -> Iterator[str]:
    """What is wrong with a block, by its language; nothing where it is marked."""
    if block.language == "text" or block.mark.startswith("not checked: "):
        return
    check = {"bash": of_commands, "python": of_python, "yaml": of_yaml, "json": of_json, "toml": of_toml}
    if block.language not in check:
        yield f"a block of {block.language!r}, which nothing checks"
        return
    try:
        yield from check[block.language](block, read)
    except (InputError, SyntaxError, ValueError, yaml.YAMLError) as error:
        yield f"{type(error).__name__}: {error}"


def of_commands(block: Block, read) -> Iterator[str]:
    for words in commands_of(block.text):
        yield from of_command(words, read)


def of_command(words: Sequence[str], read) -> Iterator[str]:
    program, *rest = words
    if program in ("python", "torchrun", "accelerate", "pytest"):
        yield from of_program(program, rest, read)
    elif program == "limner":
        yield from of_limner(rest, read)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        yield from (f"make {word}: no such target" for word in rest if "=" not in word and word not in targets)
    elif program == "pip":
        extras = re.findall(r'^ {8}"(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
        asked = [name for word in rest for names in re.findall(r"\[(.*)\]", word) for name in names.split(",")]
        yield from (f"pip install: no extra {name}" for name in asked if name not in extras)
    elif program == "curl":
        sent = [value for flag, value in zip(rest, rest[1:], strict=False) if flag == "-d"]
        yield from (f"curl: not an object: {value}" for value in sent if not isinstance(json.loads(value), dict))
    elif program not in OTHERS:
        yield f"{program}: no command of ours, nor a program that pages may use"


def of_limner(words: Sequence[str], read) -> Iterator[str]:
    """`...` stands for what a reader has; `[--option VALUE]` for what may be left out."""
    given = [word.removeprefix("[") if word.startswith("[--") else word for word in words]
    given = [word.removesuffix("]") if "[" not in word else word for word in given]
    given = [
        "1" if word == "..." else word
        for before, word in pairwise(["", *given])
        if word != "..." or before.startswith("--")
    ]
    try:
        read(given)
    except InputError as error:
        left_out = "..." in words and re.search("required|missing", str(error))
        if not left_out and not re.search("got '[A-Z]+'$", str(error)):  # PIXELS, where a number would stand
            yield f"limner {shlex.join(words)}: {error}"


def of_program(program: str, words: Sequence[str], read) -> Iterator[str]:
    files = [word for word in words if re.match(r"(configs|tests|scripts)/[\w/.]+\.\w+$", word)]
    yield from (f"{program}: no such file: {file}" for file in files if not (ROOT / file).is_file())
    if "-m" not in words or program == "pytest":
        return
    at = words.index("-m") + 1
    if words[at].startswith("limner."):
        module = words[at].removeprefix("limner.")
        if find_spec(words[at]) is None:
            yield f"{program}: no module {words[at]}"
        names = [name for name, command in COMMANDS.items() if command.home == f"{module}:main"]
        if names or module == "cli":
            yield from of_limner([*names, *words[at + 1 :]], read)


def of_python(block: Block, _) -> Iterator[str]:
    """It compiles, and what it takes from limner is there."""
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "limner":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name) and find_spec(f"{node.module}.{alias.name}") is None:
                    yield f"{node.module} has no {alias.name}"


def of_yaml(block: Block, read) -> Iterator[str]:
    """One of the commands takes it as its configuration."""
    Path("shown.yaml").write_text(block.text)
    refused = []
    for name, before in CONFIGURED.items():
        try:
            return read([name, *before, "shown.yaml"])
        except InputError as error:
            refused.append(f"{name}: {error}")
    yield "; ".join(refused)


def of_json(block: Block, _) -> Iterator[str]:
    """One value, or one a line."""
    try:
        json.loads(block.text)
    except ValueError:
        for line in block.text.splitlines():
            json.loads(line)
    yield from ()


def of_toml(block: Block, _) -> Iterator[str]:
    tomllib.loads(block.text)
    yield from ()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_points_at_what_is_there(page):
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_every_block_says_what_holds(page, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_files", {})
    monkeypatch.syspath_prepend(tmp_path)
    rewards = (ROOT / "tests/rewards/my_rewards.py").read_text()  # what pages call a file of one's own
    put(tmp_path / "my_rewards.py", f"{rewards}\nMyReward = Brevity\n")
    for block in (block for block in blocks_of(page) if block.file):
        Path(block.file).write_text(block.text)
        if block.language == "python":
            put(tmp_path / "my_package/rewards.py", block.text)  # the same as an installed module
    found = {block.place: faults for block in blocks_of(page) if (faults := list(faults_of(block, reads)))}
    assert not found, "\n".join(f"{place}: {fault}" for place, faults in found.items() for fault in faults)


FAULTS = {
    "    limner paint --out x": "'paint' is no command",
    "    limner serve --model DIR --prot 1": "prot: unknown key; did you mean port",
    "    limner serve --model DIR --port many": "expected int, got 'many'",
    "    limner grpo --config grpo/none": "neither a file nor a packaged configuration",
    "    limner data from jsonl SRC --out DIR --wrokers 2": "--wrokers",
    "    make demos": "no such target",
    "    pip install 'limner[all]'": "no extra all",
    "    torchrun -m limner.train.grpo --rewrads x": "rewrads: unknown key",
    "    python -m limner.train.nothing": "no module limner.train.nothing",
    "    pytest tests/test_nothing.py -k x": "no such file",
    "    curl -d '[1]' URL": "not an object",
    "    wget URL": "nor a program that pages may use",
    "    limner index a && limner indx b": "'indx' is no command",
    "```python\nfrom limner import lode\n```": "limner has no lode",
    "```python\nprint(\n```": "SyntaxError",
    "```yaml\nrewards: {format: 1}\nmodell: x\n```": "modell: unknown key",
    "```json\n{\n```": "JSONDecodeError",
    "```toml\na\n```": "TOMLDecodeError",
    "```ruby\na\n```": "which nothing checks",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_block_at_fault_is_found(text, reads, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\nWords.\n\n{text}\n")
    (block,) = blocks_of(page)
    assert FAULTS[text] in " ".join(faults_of(block, reads))
    page.write_text(f"# Page\n\n<!-- not checked: for a test -->\n\n{text}\n")
    assert not [*faults_of(blocks_of(page)[0], reads)]


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n\n[a](nowhere.md) [b](#page) [c](#pages) [d](page.md#page) <img src='no.png'> `tests/test_none.py`\n\n"
        "```bash\n# Page 2\n```\n\n[e](#page-2) [f](https://example.org)\n"
    )
    assert list(broken_links(page)) == ["nowhere.md", "#pages", "no.png", "#page-2", "tests/test_none.py"]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_a_page_says_whether_its_blocks_are_run(page):
    """A page of commands and code is run by a test that names it, or says why it is not."""
    if all(block.language == "text" for block in blocks_of(page)):
        return
    promise = promise_of(page)
    assert re.fullmatch(r"run by tests/[\w/]+\.py|checked, not run: \w.+", promise), f"{page.name}: {promise!r}"
    if promise.startswith("run by "):
        assert page.name in (ROOT / promise.removeprefix("run by ")).read_text(encoding="utf-8")
