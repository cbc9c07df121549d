"""What is said while a bar of progress stands on the terminal, and after one that was left there."""

import logging
import sys
from functools import partialmethod

import pytest
from tqdm import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments

from limner.configs.errors import InputError, keeping, run_or_exit
from limner.configs.terminal import prepare_streams, say
from limner.train.watch.progress import Progress


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Bars are drawn though TQDM_DISABLE was set when tqdm was imported: it gives the defaults of its `__init__`."""
    made = vars(tqdm)["__init__"]
    if isinstance(made, partialmethod):
        monkeypatch.setattr(tqdm, "__init__", made.func)


def screen(written: str) -> list[str]:
    """The lines of a terminal: behind a carriage return what is written replaces what stands there."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


@pytest.mark.parametrize(
    ("fault", "last", "code"),
    [
        (KeyboardInterrupt(), "limner: interrupted: step 3 is kept", 130),
        (InputError("prompts.jsonl: empty"), "limner: error: prompts.jsonl: empty", 2),
    ],
)
def test_what_ends_a_training_run_begins_on_a_line_of_its_own(fault, last, code, tmp_path, monkeypatch, capsys):
    def entry(_):
        args = TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=False)
        progress = Progress("GRPO")
        progress.on_train_begin(args, TrainerState(max_steps=70, global_step=3), TrainerControl())
        with keeping("step 3 is kept"):
            raise fault

    monkeypatch.setattr(sys, "argv", ["limner"])
    with pytest.raises(SystemExit) as stop:
        run_or_exit(entry)
    bar, said, rest = screen(capsys.readouterr().err)
    assert bar.startswith("GRPO:") and "3/70" in bar and said == last and not rest and stop.value.code == code


def test_a_bug_keeps_its_traceback_and_the_bar_its_line(monkeypatch, capsys):
    def entry(_):
        bar = tqdm(total=7, desc="codes")
        bar.update(1 // 0)

    monkeypatch.setattr(sys, "argv", ["limner"])
    with pytest.raises(ZeroDivisionError) as fault:
        run_or_exit(entry)
    assert capsys.readouterr().err.endswith("\n") and fault.tb  # which keeps the bar from being thrown away


def test_what_is_said_meanwhile_stands_above_the_bar(monkeypatch, capsys):
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    prepare_streams()
    warning = logging.makeLogRecord({"msg": "a reward is \x1b[31m away", "levelno": logging.WARNING})
    with tqdm(total=7, desc="codes"):
        say("alarm: dead groups", to_stderr=True)
        assert logging.lastResort and logging.lastResort.handle(warning)
    first, second, bar, rest = screen(capsys.readouterr().err)
    assert (first, second, rest) == ("alarm: dead groups", "a reward is \\x1b[31m away", "")
    assert bar.startswith("codes:")
