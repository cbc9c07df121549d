"""The site of docs/: built by one command, whole, with a page a command, and nothing fetched from elsewhere."""

import dataclasses
import importlib.util
import re
import subprocess
import sys

import pytest

import limner
from limner.configs.commands import COMMANDS

from .pages import ROOT

LOADED = re.compile(r"<(?:link|script|img|iframe|source)\b[^>]*?(?:src|href)=[\"'](?:https?:)?//[^>]*>", re.IGNORECASE)


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            "grpo",
            ["`--algorithm.beta VALUE`\n: Weight of the KL", "## algorithm.replay", "- `grpo/tiny`: Extended GRPO"],
        ),
        ("generate", ["`--image IMAGE`\n: a picture before the prompt", "## sampling", "`--seed SEED`"]),
        ("data from", ["`SOURCE`\n: one of `limner list source`", "`--keep-duplicates`\n: "]),
    ],
)
def test_a_page_of_a_command_has_its_options(generate, command, said):
    page = generate.command_page(command)
    assert page.startswith(f"# limner {command}\n") and all(words in page for words in said)


def test_settings_of_the_libraries_are_listed_with_what_presets_set(generate):
    pages = [generate.command_page(name) for name in ("grpo", "warmup", "preflight")]
    grpo, warmup, other = (page[page.index("## Settings of") :] for page in pages)
    preset = generate.read_yaml(generate.find_config("grpo/default"), "")
    assert "## Settings of `trl.GRPOConfig`" in grpo and "## Settings of `transformers.TrainingArguments`" in warmup
    for page, taken in ((grpo, generate.TAKEN["grpo"]), (warmup, generate.TAKEN["warmup"])):
        names = {field.name for field in dataclasses.fields(taken.settings)}
        assert all((f"`--{name} VALUE`\n: " in page) == (name in names) for name in generate.NEEDED)
        assert taken.page in page
    said = f"(default `1e-06`, `grpo/default` `{preset['learning_rate']}`"
    assert f"`--learning_rate VALUE`\n: The initial learning rate for AdamW. {said}" in grpo
    assert "--num_generations" not in warmup and "[limner grpo](grpo.md)." in other


def test_what_a_help_says_is_no_markup(generate):
    assert generate.plain("a *b* `c_d *` <e> {f}") == r"a \*b\* `c_d *` \<e\> \{f\}"
    assert generate.plain("one ` alone*") == r"one ` alone\*"


def test_what_is_loaded_from_elsewhere_is_found():
    assert LOADED.search('<link rel="x" href="https://fonts.example/a.css">') and LOADED.search("<img src='//a/b.png'>")
    assert not LOADED.search('<a href="https://example.org">x</a><img src="a.png"><link href="_static/a.css">')


@pytest.mark.slow
def test_the_site_is_built_and_fetches_nothing(tmp_path):
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-E", "--fail-on-warning", "-d", tmp_path / "doctrees"]
    done = subprocess.run([*sphinx, ROOT / "docs", tmp_path / "site"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= pages.keys()
    assert {f"generated/commands/{name.replace(' ', '-')}.html" for name in COMMANDS} <= pages.keys()
    assert all(f'id="limner.{name}"' in pages["generated/python.html"] for name in limner.__all__)
    assert {place: found[0] for place, text in pages.items() if (found := LOADED.findall(text))} == {}
    styles = [path for path in (tmp_path / "site/_static").rglob("*.css")]
    assert styles and not [
        path for path in styles if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text())
    ]
