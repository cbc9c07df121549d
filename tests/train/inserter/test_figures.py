import json
import random

import pytest

from limner.configs.errors import InputError
from limner.data.insertion.placements import Candidate, InsertionTask, Placement
from limner.data.insertion.tasks import write_tasks
from limner.train.inserter import figures

from ...small_chat import save_text_model

TEXT = ("Peel the apples.", " Roll out the puff pastry.", " Serve warm.")
SHOWN = tuple(Candidate(None, caption) for caption in ("a bicycle", "rolling out puff pastry"))
TASKS = [InsertionTask("?", TEXT, SHOWN, (Placement(2, 2),), "one"), InsertionTask("?", TEXT, SHOWN[:1], (), "none")]


def test_scores_are_those_of_the_answer():
    assert figures.scores(TASKS[0], [Placement(2, 2)]) == (1.0, 1.0, 1.0)
    assert figures.scores(TASKS[0], []) == (0.0, 0.0, 0.0)
    assert figures.scores(TASKS[1], []) == (1.0, 1.0, 1.0)
    f1, place, exact = figures.scores(TASKS[0], figures.spread(TASKS[0]))
    assert f1 == pytest.approx(2 / 3) and 0 < place <= 1 and not exact
    assert len(figures.drawn(TASKS[0], 5, random.Random(0))) == 2


def test_inserters_are_compared_and_what_is_placed_is_not_placed_again(tmp_path, capsys, monkeypatch):
    write_tasks({"heldout": TASKS}, tmp_path / "tasks")
    model = save_text_model(tmp_path / "llama")
    out = tmp_path / "figures"
    words = ["--tasks", str(tmp_path / "tasks" / "heldout.jsonl"), "--model", model, "--out", str(out)]
    figures.main(words)
    first = capsys.readouterr().out
    rows = first[first.index("| | F1") :].splitlines()
    assert [line.split("|")[1].strip() for line in rows[2:-1]] == [
        *("rule", "written", "likelihood", "all", "nothing", "random, as many as the rule"),
    ]
    assert "| rule | 1.000 [1.000, 1.000]" in first and "2 tasks" in first
    assert json.loads((out / "rule.0.jsonl").read_text().splitlines()[0]) == {"id": "one", "placed": [[2, 2]]}
    monkeypatch.setattr(figures, "load_model", None)
    monkeypatch.setattr(figures, "load_inserter", None)
    figures.main(words)
    assert capsys.readouterr().out.endswith("\n".join(rows) + "\n")
    figures.main([*words, "--limit", "1"])
    assert "1 task" in capsys.readouterr().out
    with pytest.raises(InputError, match="tasks: missing"):
        figures.main(["--model", model])
