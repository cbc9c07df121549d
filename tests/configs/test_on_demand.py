"""Help without libraries: what `main` says on its sources alone is what it says when everything is imported."""

import importlib
import sys

import pytest

from limner.configs import on_demand as home
from limner.configs.commands import COMMANDS
from limner.configs.on_demand import on_demand


@pytest.mark.parametrize("words", [*COMMANDS, "plan --stage warmup", "study study/paper"])
def test_help_is_that_of_the_imported_command(capsys, words):
    name = next(name for name in sorted(COMMANDS, key=len, reverse=True) if f"{words} ".startswith(f"{name} "))
    module, function = COMMANDS[name].home.split(":")
    said = []
    for found in (on_demand(f"limner.{module}"), importlib.import_module(f"limner.{module}")):
        with pytest.raises(SystemExit) as leaving:
            getattr(found, function)([*words.removeprefix(name).split(), "--help"])
        assert not leaving.value.code
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and "--" in said[0]


def test_a_name_is_defined_when_it_is_asked_for(tmp_path, monkeypatch):
    """And whatever it takes: imports, bases, decorators, defaults, every statement that makes it what it is."""
    files = {
        "__init__.py": "",
        "rooms/__init__.py": "",
        "rooms/heavy.py": "import absent.deep as deep\nfrom absent import base, mark\nfrom .cycle import back\n"
        "raise_if_run = 1 / 0\nSIZE = 2\nSIZE += 1\n"
        "@mark(1)\ndef marked(): ...\n"
        "class Own(base.Class, deep.Other):\n    size: int = SIZE\n"
        "    @mark\n    def grown(self): return more(self.size)\n"
        "def more(size, by=SIZE): return size + by + back()\n",
        "rooms/cycle.py": "from . import heavy\ntry:\n    import json as code\nexcept ImportError:\n    code = None\n"
        "def back():\n    from .heavy import SIZE\n    return int(code.dumps(SIZE)) + heavy.SIZE\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(home, "ROOT", tmp_path)
    for name in ("limner.rooms", "limner.rooms.heavy", "limner.rooms.cycle"):
        monkeypatch.delitem(sys.modules, f"{name} on demand", raising=False)
    heavy = on_demand("limner.rooms.heavy")
    assert "Own" not in vars(heavy)
    assert heavy.Own.size == 3 and "more" not in vars(heavy)
    assert heavy.more(1) == 1 + 3 + 3 + 3
    assert not hasattr(heavy, "nothing")
    with pytest.raises(ZeroDivisionError):
        heavy.raise_if_run  # noqa: B018
