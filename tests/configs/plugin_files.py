"""Files of plug-ins, and what is said of those that cannot be used."""

import textwrap
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.configs.registry import find

BREVITY = '''
    """Mine."""
    from limner.configs.registry import register


    class Brevity:
        """Short ones."""

        def __call__(self, completions):
            return [0.5 for _ in completions]


    def short(completions):
        return [1.0 for _ in completions]


    LEAST = 3
    one = Brevity()


    class Silent:
        pass
'''


def write(path: Path, text: str = BREVITY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def refused(name: str, kind: str = "reward", **others) -> str:
    """What is said, in one line."""
    with pytest.raises(InputError) as caught:
        find(kind, name, **others)
    said = str(caught.value)
    assert "\n" not in said
    return said
