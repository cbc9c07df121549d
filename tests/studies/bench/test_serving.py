"""The benchmark of serving: what clients see, counted and timed by its definitions."""

import json
import threading
import time

import pytest

from limner.configs.errors import InputError
from limner.serve.rows.events import Shown, Text
from limner.studies.bench import serving
from limner.studies.bench.models import BenchModel
from limner.studies.bench.serving import BenchConfig, Seen, main, note, opened, spread, summary


def test_all_loops_run_and_say_what_was_seen(make_policy, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(serving.MODELS, "tiny_llama", BenchModel(lambda: make_policy(0)))
    monkeypatch.setattr(serving, "limit_threads", lambda: None)
    monkeypatch.setattr(serving, "BATCH", 4)
    sizes = ["--requests", "6", "--concurrency", "1", "3", "--long", "12", "--pictures", "0.6"]
    flags = [*sizes, "--rates", "1.0", "--turns", "1"]
    main([*flags, "--json", str(tmp_path / "a.json")])
    figures = json.loads((tmp_path / "a.json").read_text())
    rows = [*figures["closed"], *figures["open"]]
    assert [row["clients"] for row in figures["closed"]] == [1, 3]
    pictures = rows[0]["pictures_per_second"] * rows[0]["seconds"]
    for row in rows:
        assert row["requests"] == 6 and row["rejected"] == 0 and row["tokens_per_second"] > 0
        assert 0 < row["ttft"]["p50"] <= row["e2el"]["p50"] and row["first_picture"]["mean"] > 0
        assert row["pictures_per_second"] * row["seconds"] == pytest.approx(pictures)
    assert set(figures["together"]["over"]) == {"batch", "one_by_one"} and set(figures["http"]["over"]) == {"engine"}
    assert {*figures["burst"]["over"]} == {*figures["together"]["over"]}
    assert capsys.readouterr().out.count("batches by the sampler") == 2


def test_times_are_those_of_events():
    seen, last = Seen(time.perf_counter()), [0.0]
    note(seen, Text("a"), last)
    time.sleep(0.01)
    note(seen, Text("b"), last)
    note(seen, Shown(None, b""), last)  # pyright: ignore
    time.sleep(0.01)
    note(seen, Text("c"), last)
    assert len(seen.text_itl) == 1 and seen.text_itl[0] >= 0.01, "no gap over a picture"
    assert 0 < seen.ttft < seen.text_itl[0] <= seen.first_picture and seen.pictures == 1
    assert spread([]) is None and spread([0.001 * n for n in range(1, 101)])["p90"] == pytest.approx(91)


def test_goodput_counts_those_that_keep_every_goal():
    seen = [Seen(0, ttft=0.1, e2el=1.0, tokens=5), Seen(0, ttft=2.0, e2el=1.0), Seen(0, rejected=True)]
    row = summary(seen, 2.0, {"ttft": 1.0, "e2el": 2.0})
    assert (
        row["goodput"] == 0.5
        and row["rejected"] == 1
        and row["requests_per_second"] == 1
        and row["first_picture"] is None
    )


def test_open_loops_do_not_wait_for_answers():
    all_under_way = threading.Barrier(10)
    opened([None] * 10, 100.0, lambda asked: all_under_way.wait(60) and Seen(0) or Seen(0), 0)
    assert not all_under_way.broken


def test_settings_are_checked():
    for settings in ({"concurrency": [0]}, {"rates": [0.0]}, {"pictures": 2.0}, {"goals": {"tpot": 1.0}}):
        with pytest.raises(InputError):
            BenchConfig(**settings).check()
