"""The registry: names found in sources, patterns, files, modules, other packages' entry points; a fault is one line."""

import hashlib
import re
import subprocess
import sys
import textwrap

import pytest

from limner.configs.registry import (
    NOUNS,
    entries,
    files_in,
    find,
    fitting,
    label_of,
    names_a_file,
)

from .plugin_files import BREVITY, refused, write

# ---- names ----


def test_names_are_those_that_the_sources_claim():
    found = entries("reward")
    assert {"format", "structure", "questions", "judge/TEMPLATE", "image/PRESET", "picture_stories/text_plan"} <= {
        *found
    }
    assert [*found] == sorted(found)
    entry = found["format"]
    assert entry.where == "limner.rewards.rules.format:FormatReward" and entry.doc.startswith("Structural fidelity")
    assert all(entry.doc for entry in found.values()), "a list says what each is"


@pytest.mark.parametrize("kind", NOUNS)
def test_every_name_is_there_when_it_is_asked_for(kind):
    for name, entry in entries(kind).items():
        prefix, slash, option = name.partition("/")
        asked = f"{prefix}/x" if option.isupper() else name
        found = find(kind, asked)
        assert (found.thing.__module__, found.thing.__qualname__) == (entry.module, entry.attribute)
        assert found.given == ({option.lower(): "x"} if slash and option.isupper() else {})


def test_reading_names_imports_nothing():
    code = """
        import sys
        from limner.configs.registry import entries
        assert "format" in entries("reward")
        print([name for name in sys.modules if name.startswith("limner.") and not name.startswith("limner.configs")])
        print("torch" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "False"]


@pytest.mark.parametrize(
    ("name", "given", "label"),
    [
        ("format", {}, "format"),
        ("picture_stories/text_plan", {}, "picture_stories_text_plan"),
        ("judge/helpfulness", {"template": "helpfulness"}, "judge_helpfulness"),
        ("judge/helpfulness.v1", {"template": "helpfulness.v1"}, "judge_helpfulness"),
        ("judge/my/own/brief.yaml", {"template": "my/own/brief.yaml"}, "judge_brief"),
        ("judge//home/me/brief.yaml", {"template": "/home/me/brief.yaml"}, "judge_brief"),
        ("judge/brief.yaml", {"template": "brief.yaml"}, "judge_brief"),
        ("image/clipscore", {"preset": "clipscore"}, "image_clipscore"),
        ("remote/judge_helpfulness", {"reward": "judge_helpfulness"}, "remote_judge_helpfulness"),
    ],
)
def test_a_name_gives_the_rest_of_its_pattern(name, given, label):
    found = find("reward", name)
    assert (found.name, found.given, found.label) == (name, given, label) and label_of(name) == label


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("formt", r"no reward is called 'formt'; did you mean format\?$"),
        ("brevity", r"no reward is called 'brevity'; there are consistency/PRESET, .*, or path/to/file.py:Name$"),
        ("image/", "no reward is called 'image/'; did you mean image/PRESET"),
        ("judges/helpfulness", "no reward is called"),
        ("", "no reward is called ''; there are"),
        ("my file:Name", "no reward is called 'my file:Name'"),
    ],
)
def test_a_name_that_nothing_has(name, words):
    assert re.search(f"^rewards: {words}", refused(name, place="rewards"))


def test_each_kind_has_its_noun():
    for kind, noun in NOUNS.items():
        assert f"no {noun.partition(' ')[2]} is called 'nowhere_at_all'" in refused("nowhere_at_all", kind)


# ---- files ----


def test_a_class_and_a_function_of_a_file(tmp_path, monkeypatch):
    path = write(tmp_path / "deep" / "my_rewards.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (f"{path}:Brevity", "deep/my_rewards.py:Brevity", "./deep/my_rewards.py:Brevity"):
        found = find("reward", name)
        assert found.thing.__qualname__ == found.label == "Brevity" and not found.given
    assert find("reward", "~/deep/my_rewards.py:short").thing([1, 2]) == [1.0, 1.0]


def test_a_file_is_run_once_and_kept_as_it_was(tmp_path):
    log = tmp_path / "log"
    path = write(tmp_path / "mine.py", f"open({str(log)!r}, 'a').write('x')\ndef one(completions): return []\n")
    source = path.read_bytes()
    first = find("reward", f"{path}:one").thing
    path.write_text("def one(completions): return [1.0]\n")
    assert find("reward", f"{path}:one").thing is first and log.read_text() == "x"
    (kept,) = files_in({"rewards": {f"{path}:one": {"weight": 1}}, "device": "cuda:1"})
    assert kept.source == source and kept.sha256 == hashlib.sha256(source).hexdigest()


def test_dataclasses_and_hints_of_a_file_are_read(tmp_path):
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        @dataclass
        class Brevity:
            words: int = 3
            def __call__(self, completions): return []
    """
    assert find("reward", f"{write(tmp_path / 'mine.py', source)}:Brevity").thing().words == 3


BAD_FILES = {
    # source (None: no file), what it names, what is said of it
    "missing": (None, "Brevity", "no such file; name a Python file and what it defines: path/to/file.py:Name"),
    "raises": ("import os\n\n1 / 0\n", "Brevity", "line 3 raises ZeroDivisionError: division by zero"),
    "raises within": ("def f():\n    return {}['x']\n\nf()\n", "Brevity", "line 4 raises KeyError: 'x'"),
    "raises over several lines": ("raise ValueError('one\\ntwo')", "Brevity", "line 1 raises ValueError: one two"),
    "syntax": ("def f():\nreturn 1\n", "f", "line 2 raises IndentationError: expected an indented block"),
    "no Python": (b"\x00\xff", "f", "raises SyntaxError"),
    "lacks a package": (
        "import os\nimport nowhere_at_all",
        "f",
        "line 2 raises ModuleNotFoundError: No module named 'nowhere_at",
    ),
    "leaves": ("import sys\nsys.exit(3)", "Brevity", "line 2 raises SystemExit: 3"),
    "near": (BREVITY, "Brevty", "has no 'Brevty'; did you mean Brevity?"),
    "far": (BREVITY, "Length", "has no 'Length'; it defines Brevity, short, one, Silent"),
    "empty": ("import os\n", "Brevity", "has no 'Brevity'; it defines nothing"),
    "no __call__": (
        BREVITY,
        "Silent",
        "is not a reward: expected a class with __call__ or a function, and this class has",
    ),
    "a number": (
        BREVITY,
        "LEAST",
        "is not a reward: expected a class with __call__ or a function, and this is of type int",
    ),
    "an instance": (BREVITY, "one", "is not a reward: expected .*, and this is of type Brevity"),
    "a module": ("import os\n", "os", "is not a reward: expected .*, and this is of type module"),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_file_that_cannot_be_used_is_one_line(fault, tmp_path):
    source, name, words = BAD_FILES[fault]
    path = tmp_path / "mine.py"
    if isinstance(source, bytes):
        path.write_bytes(source)
    elif source is not None:
        write(path, source)
    said = refused(f"{path}:{name}", place="rewards")
    assert said.startswith(f"rewards: {path}") and re.search(words.replace("?", r"\?"), said)
    assert f"'{name}'" in said or f":{name}: " in said or "line" in said or fault in ("missing", "no Python")


def test_a_file_that_was_repaired_is_run_again(tmp_path):
    path = write(tmp_path / "mine.py", "1 / 0")
    before = {*sys.modules}
    assert "ZeroDivisionError" in refused(f"{path}:Brevity")
    assert not [name for name in {*sys.modules} - before if name.startswith("limner_plugin_")]
    write(path)
    assert find("reward", f"{path}:Brevity").label == "Brevity"


def test_a_kind_of_several_methods_takes_no_function(tmp_path):
    path = write(tmp_path / "mine.py")
    assert re.search(
        "is not a benchmark: expected a class with .*, and this is a function$", refused(f"{path}:short", "benchmark")
    )
    assert "and this class has no records" in refused(f"{path}:Brevity", "benchmark")


def test_methods_may_be_inherited_and_of_any_sort():
    class Base:
        @classmethod
        def __call__(cls, completions):
            return []

    class Mine(Base):
        pass

    assert fitting("reward", Mine, "mine") is Mine


def test_an_installed_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "installed_rewards_a" / "__init__.py", "")
    write(tmp_path / "installed_rewards_a" / "short.py")
    write(tmp_path / "installed_rewards_a" / "broken.py", "\n1 / 0")
    write(tmp_path / "installed_rewards_a" / "needs.py", "import nowhere_at_all")
    found = find("reward", "installed_rewards_a.short:Brevity")
    assert found.thing is sys.modules["installed_rewards_a.short"].Brevity and found.label == "Brevity"
    faults = {
        "installed_rewards_a.short:Brevty": "installed_rewards_a.short: has no 'Brevty'; did you mean Brevity",
        "installed_rewards_a.short:Silent": "installed_rewards_a.short:Silent: is not a reward: expected a class with",
        "installed_rewards_a.broken:F": "installed_rewards_a.broken: raises ZeroDivisionError",
        "installed_rewards_a.needs:F": "installed_rewards_a.needs: raises ModuleNotFoundError: No module named 'now",
        "installed_rewards_a.none:F": "installed_rewards_a.none: no such module is installed; a file is named path/to/",
        "nowhere_at_all:F": "nowhere_at_all: no such module is installed",
    }
    for name, words in faults.items():
        assert f"rewards: {words}" in refused(name, place="rewards")


@pytest.mark.parametrize(
    "name", ["mine.py:Brevity", "/tmp/mine.py:Brevity", "json:loads", "my_package.rewards:Brevity"]
)
def test_what_came_with_a_checkpoint_names_no_files(name, tmp_path, monkeypatch):
    """Nothing is run to find that out."""
    log = tmp_path / "log"
    write(tmp_path / "mine.py", f"open({str(log)!r}, 'a').write('x')")
    monkeypatch.chdir(tmp_path)
    assert refused(name, files=False, place="form") == (
        f"form: {name}: what came with a checkpoint may not name files or modules of its own"
    )
    assert not log.exists()


def test_without_files_nobody_is_told_of_them():
    assert find("prompt", "prompt", files=False).name == "prompt"
    assert "file.py" not in refused("nowhere_at_all", "prompt", files=False)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("mine.py:Brevity", True),
        ("/a b/mine.py:Brevity", True),
        ("package.module:Name", True),
        ("format", False),
        ("judge/helpfulness", False),
        ("module:Name", False),
        ("http://gpu-2:8400", False),
        ("gpu-2.local:8400", False),
        ("mine.py", False),
        (3, False),
        (None, False),
    ],
)
def test_whether_a_text_names_a_file(text, is_one):
    assert names_a_file(text) is is_one
