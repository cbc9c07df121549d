"""JSON and YAML that Python chokes on, words that steer a terminal, disks that are full, and interrupts."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from limner.configs.errors import InputError, keeping, run_or_exit, writing
from limner.configs.json_text import json_at, parse_json
from limner.configs.terminal import visible
from limner.configs.yaml_file import parse_yaml, read_yaml


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 deep"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('["\\ud800"]', "half of a surrogate pair"),
        (b'"\xed\xa0\x80"', "not text"),
    ],
)
def test_json_that_nothing_can_work_with(text, said):
    with pytest.raises(json.JSONDecodeError, match=said):
        parse_json(text)


def test_sound_json():
    assert parse_json(b'\xef\xbb\xbf{"a": ["\\ud83d\\ude00", 1]}') == {"a": ["\U0001f600", 1]}
    assert json_at(" [1] 2", 1) == ([1], 4)


BOMB = "a: &a [x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefgh"))


@pytest.mark.parametrize("text", ["a: !!int x", "a: 0x_", "a: &a [*a]", "a: " + "[" * 900, BOMB, "{[1]: 2}", "!!map x"])
def test_yaml_that_nothing_can_work_with(text, tmp_path):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=f"^{tmp_path}/a.yaml: "):
        read_yaml(tmp_path / "a.yaml")


def test_what_would_steer_a_terminal_is_shown():
    assert visible("\x1b[31mred\x07 \u202eabc \ud800") == "\\x1b[31mred\\x07 \\u202eabc \\ud800"
    assert visible("caf\u00e9\u00a0\u98df\u3000\n") == "caf\u00e9\u00a0\u98df\u3000\n"


def test_only_faults_of_the_disk_are_caught(tmp_path):
    with (
        pytest.raises(InputError, match=f"^{tmp_path}/x: cannot be written: No space left on device"),
        writing(tmp_path / "x"),
    ):
        Path("/dev/full").write_text("x")
    with pytest.raises(InputError, match="No space left"), writing(tmp_path / "x"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(TypeError), writing(tmp_path / "x"):
        raise TypeError("a bug")


def test_an_argument_that_is_no_text_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limner", "generate", "caf\udce9"])
    with pytest.raises(SystemExit) as stop:
        run_or_exit(lambda words: pytest.fail("it was started"))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("limner: error: argument 2, caf\\udce9: not UTF-8")


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def entry(_):
        with keeping("runs/x keeps 3 answers; the same command goes on"):
            try:
                raise KeyboardInterrupt
            finally:
                pass

    monkeypatch.setattr(sys, "argv", ["limner"])
    with pytest.raises(SystemExit) as stop:
        run_or_exit(entry)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "limner: interrupted: runs/x keeps 3 answers; the same command goes on\n"
