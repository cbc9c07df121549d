"""Figures and their intervals, and the guard: before against after, paired, with an exit code."""

import json

import numpy as np
import pytest

from limner.configs import parse
from limner.configs.errors import InputError
from limner.eval.capabilities import GuardConfig, guard, main, table_text
from limner.eval.figures import Share, compare, figure_estimate, figures_json, figures_of, mean_of
from limner.eval.run import EvalConfig, evaluations
from limner.eval.run import main as evaluate
from limner.eval.statistics import estimate

RNG = np.random.default_rng(0)
RIGHT = {f"q{n}": float(value) for n, value in enumerate(RNG.random(400) < 0.7)}


def test_a_mean_is_that_of_statistics():
    ours, theirs = figure_estimate(mean_of(RIGHT, 100)), estimate([100 * value for value in RIGHT.values()])
    assert ours is not None and ours["value"] == pytest.approx(theirs["value"]) and ours["n"] == theirs["n"]
    for end in ("low", "high"):
        assert ours[end] == pytest.approx(theirs[end], abs=0.7)


def test_sums_of_shares():
    """A mean over two tasks of different size, and a ratio of sums; nothing to divide by is no figure."""
    tasks = [Share({"a": (1, 2), "b": (2, 2)}, 50), Share({"c": (0, 4)}, 50)]
    found = figure_estimate(tasks)
    assert found is not None and found["value"] == 37.5 and found["n"] == 3
    assert found["low"] == 25 and found["high"] == 50  # b or a alone can be drawn
    assert figure_estimate([Share({"a": (0, 0)})]) is None and figure_estimate([Share({})]) is None
    assert figure_estimate(figures_of(json.loads(json.dumps(figures_json({"f": tasks}))))["f"]) == found


def test_pairing_narrows_the_interval():
    """Two in every hundred answers turn wrong: certain when paired, hidden in two separate intervals."""
    worse = {unit: 0.0 if number % 50 == 0 else value for number, (unit, value) in enumerate(RIGHT.items())}
    paired = compare(mean_of(RIGHT), mean_of(worse))
    assert paired is not None and paired.difference["value"] == pytest.approx(paired.after - paired.before)
    apart = figure_estimate(mean_of(RIGHT))
    assert apart is not None
    width = paired.difference["high"] - paired.difference["low"]
    assert paired.difference["high"] < 0 and width < 0.5 * (apart["high"] - apart["low"])
    same = compare(mean_of(RIGHT), mean_of(RIGHT))
    assert same is not None and same.difference["low"] == same.difference["high"] == 0


def test_only_common_units_are_compared():
    before, after = mean_of({"a": 1, "b": 1, "c": 0}), mean_of({"b": 1, "c": 1, "d": 0})
    found = compare(before, after)
    assert found is not None and (found.before, found.after, found.difference["n"], found.unpaired) == (0.5, 1, 2, 2)
    assert compare(mean_of({"a": 1}), mean_of({"b": 1})) is None
    with pytest.raises(ValueError, match="other shares"):
        compare(before, mean_of({"a": 1}, 100))


def write_run(folder, figures=None, verdicts=None, **manifest):
    """A finished run, with figures of its own or verdicts alone."""
    folder.mkdir(parents=True)
    kept = {"benchmark": "b", "scoring": {"rule": "r"}, "data": {"file": str(folder), "sha256": "1"}, **manifest}
    (folder / "results.json").write_text(json.dumps({"benchmark": "b", "manifest": kept}))
    if figures:
        (folder / "figures.json").write_text(json.dumps(figures_json(figures)))
    records = [
        {"id": unit, "aspect": "score", "score": value, "failure": "" if value is not None else "timeout"}
        for unit, value in (verdicts or {}).items()
    ]
    (folder / "verdicts.0.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def runs(tmp_path):
    """Ten points lost in `acc` of run x, none in y."""
    worse = {unit: 0.0 if number % 10 == 0 else value for number, (unit, value) in enumerate(RIGHT.items())}
    for name, values in (("before", RIGHT), ("after", worse)):
        write_run(tmp_path / name / "x", {"acc": mean_of(values, 100), "other": mean_of(values, 100)})
        write_run(tmp_path / name / "y", verdicts={"1": 3.0, "2": 5.0})
    return [str(tmp_path / "before"), str(tmp_path / "after")]


def test_the_table_and_the_exit_code(runs, tmp_path, capsys):
    assert main([*runs, "--limits", "{x.acc: 20, y.score: 0}", "--out", str(tmp_path / "guard.json")]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["figure", "x.acc", "x.other", "y.score"]
    assert out.endswith(f"within their limits: all 2 that have one; wrote {tmp_path / 'guard.json'}\n")
    assert out.count(" ok") == 2 and "CROSSED" not in out
    rows = json.loads((tmp_path / "guard.json").read_text())["rows"]
    assert rows[0]["comparison"]["difference"]["value"] < 0 and rows[1]["limit"] is None
    assert main([*runs, "--limits", "{x.acc: 1}"]) == 1
    assert main([*runs, "--limits", "{'x.*': 1, x.acc: 20}"]) == 1  # by x.other; the longer name holds for x.acc
    rows = guard(GuardConfig(*runs, limits={"x.*": 1, "x.acc": 20}))
    assert [row.name for row in rows if row.crossed] == ["x.other"] and "CROSSED" in table_text(rows)
    assert main([*runs, "--limits", "{x.acc: 1}", "--certain", "true"]) == 1
    loss = -rows[0].comparison.difference["value"]
    assert main([*runs, "--limits", f"{{x.acc: {loss - 0.1}}}", "--certain", "true"]) == 0
    capsys.readouterr()
    assert main(runs) == 0  # nothing is limited
    assert "no figure is held; next: the same command with --limits '{x.acc: LOSS}'" in capsys.readouterr().out


def test_lost_answers_cross_it_too(tmp_path):
    """An answer that fails after training must not make the figure look kept."""
    write_run(tmp_path / "before", verdicts=RIGHT)
    write_run(
        tmp_path / "after", verdicts={unit: value if int(unit[1:]) > 40 else None for unit, value in RIGHT.items()}
    )
    folders = (str(tmp_path / "before"), str(tmp_path / "after"))
    (row,) = guard(GuardConfig(*folders, limits={"b.score": 1}))
    assert row.crossed == "UNPAIRED" and row.comparison.unpaired == 41
    (row,) = guard(GuardConfig(*folders, limits={"b.score": 1}, unpaired=0.2))
    assert not row.crossed


def test_what_cannot_be_compared(runs, tmp_path):
    with pytest.raises(InputError, match=r"'x.f1' fits no figure.*x.acc"):
        guard(GuardConfig(*runs, limits={"x.f1": 1}))
    write_run(tmp_path / "other" / "x", {"acc": mean_of(RIGHT, 100)}, data={"sha256": "2"})
    with pytest.raises(InputError, match="only one of them has 'y'"):
        guard(GuardConfig(runs[0], str(tmp_path / "other")))
    with pytest.raises(InputError, match="not comparable, data"):
        guard(GuardConfig(f"{runs[0]}/x", str(tmp_path / "other" / "x")))
    with pytest.raises(InputError, match="results.json"):
        guard(GuardConfig(runs[0], str(tmp_path / "nothing")))
    with pytest.raises(InputError, match="limits"):
        GuardConfig(*runs, limits={"x.acc": -1})
    with pytest.raises(InputError, match="before, after"):
        main([])


def test_a_suite_is_checked_before_one_begins(tmp_path):
    (config,) = parse((EvalConfig,), ["--config", "eval/capabilities", "--model", "m", "--suite.pope.data", "p.json"])
    pope, mme, geneval = evaluations(config)
    assert [run.benchmark for run in (pope, mme, geneval)] == ["pope", "mme", "geneval"]
    assert (pope.model, pope.data, pope.out) == ("m", "p.json", "runs/capabilities/pope")
    assert pope.sampling.temperature == 0 and geneval.sampling.temperature is None and not geneval.suite
    config.suite["mme"] = {"benchmark": "mme", "dta": "x"}
    with pytest.raises(InputError, match="suite.mme: dta"):
        evaluations(config)
    with pytest.raises(InputError, match="suite: data"):
        EvalConfig(model="m", data="x", suite={"a": {}})


def test_a_suite_of_given_answers_and_its_guard(tmp_path, capsys):
    for name, said in (("before", "Yes"), ("after", "No")):
        rows = [{"id": n, "question": "?", "answer": "yes", "prediction": said} for n in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        answers = str(tmp_path / f"{name}.jsonl")
        settings = {"benchmark": "vqa", "model": "", "answers": answers}
        suite = json.dumps({"one": settings, "two": settings})
        assert len(evaluate(["--model", "m", "--suite", suite, "--out", str(tmp_path / name)])) == 2
    folders = [str(tmp_path / "before"), str(tmp_path / "after")]
    assert main([*folders, "--limits", "{'*.accuracy': 5}"]) == 1
    assert capsys.readouterr().out.count("CROSSED") == 2
