"""Who claims a name: our own sources, packages with an entry point, a running program; and two that claim the same."""

import re
import sys
from pathlib import Path

import pytest

from limner.configs import registry
from limner.configs.errors import InputError
from limner.configs.registry import entries, find, register

from .plugin_files import refused, write


@pytest.fixture
def fresh(monkeypatch):
    """Sources are read again, before and after; what a test registers is forgotten."""

    def forget():
        registry._own_entries.cache_clear()
        registry._entries_of_others.cache_clear()

    monkeypatch.setattr(registry, "_marked", dict(registry._marked))
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def package(folder: Path, files: dict[str, str], point: str, name: str = "others") -> None:
    """An installed package: its modules, and the metadata in which its entry point stands."""
    for file, text in files.items():
        write(folder / file, text)
    write(folder / f"{name}-1.0.dist-info" / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    write(folder / f"{name}-1.0.dist-info" / "entry_points.txt", f"[limner.plugins]\n{name} = {point}\n")


# ---- two claims ----

CLAIMS = '''
    from ..configs.registry import register


    @register("reward", "brevity")
    class {name}:
        """Short ones."""

        def __call__(self, completions):
            return []
'''


def test_two_of_our_own_sources_claim_a_name(fresh, tmp_path):
    write(tmp_path / "rewards" / "one.py", CLAIMS.format(name="Brevity"))
    write(tmp_path / "tests" / "other.py", CLAIMS.format(name="Tested"))
    fresh.setattr(registry, "ROOT", tmp_path)
    assert {name: entry.where for name, entry in entries("reward").items() if name == "brevity"} == {
        "brevity": "limner.rewards.one:Brevity"
    }, "tests are not shipped"
    write(tmp_path / "worlds" / "mine" / "rewards.py", CLAIMS.format(name="Shortness"))
    registry._own_entries.cache_clear()
    words = "reward 'brevity' is claimed twice, by limner.rewards.one:Brevity and limner.worlds.mine.rewards:Shortness"
    assert words in refused("brevity") and words in refused("format")
    assert "brevity" not in entries("prompt"), "a kind of its own"


def test_a_running_program_claims_a_name(fresh):
    def brevity(completions):
        """Short ones."""
        return []

    assert register("reward", "my/brevity")(brevity) is brevity
    assert register("reward", "my/brevity")(brevity) is brevity
    assert find("reward", "my/brevity").thing is brevity
    assert entries("reward")["my/brevity"].doc == "Short ones."
    with pytest.raises(InputError, match="reward 'my/brevity' is claimed twice, by .*brevity and .*write; rename one"):
        register("reward", "my/brevity")(write)
    registry._marked.pop(("reward", "format"), None)
    register("reward", "format")(brevity)
    assert "claimed twice, by limner.rewards.rules.format:FormatReward and " in refused("format")
    with pytest.raises(InputError, match="register: no kind 'rewards'; there are reward, benchmark"):
        register("rewards", "brevity")


def test_another_package_claims_a_name_of_ours(fresh, tmp_path):
    source = CLAIMS.replace("..configs", "limner.configs").replace("brevity", "format").format(name="Format")
    package(tmp_path, {"clashing_rewards/__init__.py": "", "clashing_rewards/form.py": source}, "clashing_rewards")
    fresh.syspath_prepend(tmp_path)
    said = refused("structure")
    assert "by limner.rewards.rules.format:FormatReward and clashing_rewards.form:Format; remove one" in said


# ---- other packages ----

OTHERS = {
    "{name}/__init__.py": "from limner.configs.registry import register\n",
    "{name}/deep/__init__.py": "",
    "{name}/deep/rewards.py": """
        from limner.configs.registry import register

        from .. import register as same

        @register("reward", "others/brevity")
        class Brevity:
            '''Short ones.'''

            def __call__(self, completions):
                return [0.25 for _ in completions]

        @register("reward", "others_by/WORD")
        class Word(Brevity):
            '''Of a word.'''

            def __init__(self, word: str):
                self.word = word

        @register("reward", "others/later")
        async def later(completions):
            return [0.5 for _ in completions]
    """,
    "{name}/broken.py": "@register('reward', 'others/broken'\nclass Broken:",
    "{name}/raises.py": """
        from limner.configs.registry import register
        1 / 0
        @register("reward", "others/raises")
        def raises(completions): return []
    """,
}


def named(name: str) -> dict[str, str]:
    return {file.format(name=name): text for file, text in OTHERS.items()}


def test_an_installed_package_is_found_and_not_imported_before_it_is_used(fresh, tmp_path, capsys):
    package(tmp_path, named("others_a"), "others_a")
    fresh.syspath_prepend(tmp_path)
    found = entries("reward")
    assert found["others/brevity"].where == "others_a.deep.rewards:Brevity"
    assert found["others/brevity"].doc == "Short ones." and "others/later" in found
    assert find("reward", "format") and not [name for name in sys.modules if name.startswith("others_a")]
    brevity = find("reward", "others/brevity")
    assert brevity.thing()([1, 2]) == [0.25, 0.25] and brevity.label == "others_brevity"
    assert "others_a.deep.rewards" in sys.modules and "others_a.raises" not in sys.modules
    assert find("reward", "others_by/heart").given == {"word": "heart"}
    assert "others_a.raises: raises ZeroDivisionError" in refused("others/raises")
    assert "no reward is called 'others/broken'" in refused("others/broken"), "its file is no Python"
    assert not capsys.readouterr().err


def test_a_single_module_and_a_package_without_an_init(fresh, tmp_path):
    rewards = OTHERS["{name}/deep/rewards.py"].replace("from .. import register as same", "")
    package(tmp_path, {"others_single.py": rewards}, "others_single", "single")
    package(tmp_path, {"others_open/mine.py": rewards.replace("others", "open")}, "others_open", "open")
    fresh.syspath_prepend(tmp_path)
    found = entries("reward")
    assert found["others/brevity"].where == "others_single:Brevity"
    assert found["open/brevity"].where == "others_open.mine:Brevity"


def test_a_package_that_is_broken_is_left_out_with_a_line(fresh, tmp_path, capsys):
    package(tmp_path, {}, "gone_package", "gone")
    package(
        tmp_path, {"others_raises/__init__.py": "1 / 0", "others_raises/mine.py": ""}, "others_raises.mine", "raises"
    )
    package(tmp_path, named("others_b"), "others_b.deep", "sound")
    fresh.syspath_prepend(tmp_path)
    assert entries("reward")["others/brevity"].where == "others_b.deep.rewards:Brevity"
    assert find("reward", "format") and find("reward", "others/brevity")
    lines = sorted(capsys.readouterr().err.splitlines())
    assert len(lines) == 2 and all(line.endswith("; left out") for line in lines)
    assert lines[0].startswith("limner: plug-in gone (gone_package): raises ModuleNotFoundError: No module named")
    assert lines[1].startswith("limner: plug-in raises (others_raises.mine): raises ZeroDivisionError")


def test_a_claim_without_a_call_is_one_line(fresh, tmp_path):
    source = CLAIMS.replace("..configs", "limner.configs").replace("__call__", "score").format(name="Brevity")
    package(tmp_path, {"others_silent.py": source}, "others_silent")
    fresh.syspath_prepend(tmp_path)
    assert re.search("others_silent:Brevity: is not a reward: .*this class has no __call__$", refused("brevity"))
