"""Work in tasks: the same bytes for any number of them, for workers, after kills; what does not belong is refused."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.data.conversion import convert, open_source
from limner.data.jobs import parts as jobs
from limner.data.jobs.parts import merge, run_units
from limner.data.jobs.plan import PLAN, open_plan, parts_of, task_units, units_of
from limner.data.shards import read_documents, read_index
from limner.data.sources.report import Report
from limner.data.validate import validate

from ...data_files import encoded, put, put_lines, put_parquet, put_tar

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A kite."}]


@pytest.fixture
def chats(tmp_path) -> Path:
    """A folder of 60 records in two forms, three of them faulty, one without an id of its own, one id twice."""
    root = tmp_path / "chats"
    put(root / "a.png", encoded())
    records = [{"id": n, "image": "a.png", "conversations": TALK} for n in range(40)]
    records[7] = {"image": "a.png", "conversations": TALK}
    records[9]["image"] = "none.png"
    records[33]["id"] = 3
    put_lines(root / "a.jsonl", *records)
    with (root / "a.jsonl").open("a") as lines:
        lines.write('{"broken\n')
    rows = [{"id": str(n), "image": "a.png", "conversations": TALK} for n in range(20)]
    put_parquet(root / "b.parquet", *rows)
    return root


def planned(chats, out, unit_bytes=900):
    return open_plan("chat", chats, {}, out, 0.2, unit_bytes)


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_full_disk_is_no_fault_of_a_document(chats, tmp_path, monkeypatch):
    def full(self, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    plan = planned(chats, tmp_path / "out")
    monkeypatch.setattr("limner.data.shards.writing.OpenShard.write", full)
    with pytest.raises(InputError, match="out.parts/00000: cannot be written: No space left on device"):
        run_units(plan, tmp_path / "out", [0])
    with pytest.raises(InputError, match="out: cannot be written: No space left on device"):
        convert(open_source("chat"), chats, tmp_path / "out")
    assert [file.name for file in parts_of(tmp_path / "out").iterdir()] == [PLAN] and not (tmp_path / "out").exists()


def test_the_result_does_not_depend_on_tasks_workers_or_kills(chats, tmp_path, monkeypatch):
    results = []
    for tasks in (1, 3, 100):
        out = tmp_path / f"out-{tasks}"
        plan = planned(chats, out)
        for task in reversed(range(tasks)):
            run_units(plan, out, task_units(plan, tasks, task), say=lambda _: None)
        merge(out)
        results.append(bytes_of(out))
    assert len(plan.units) > 5 and results[0] == results[1] == results[2]
    assert not parts_of(out).exists() and validate(out) == []

    out = tmp_path / "killed"
    plan, made = planned(chats, out), []
    original = jobs.read

    def killed(*words):
        for number, given in enumerate(original(*words)):
            if len(made) % 2 and number == 2:
                raise KeyboardInterrupt
            yield given

    monkeypatch.setattr(jobs, "read", killed)
    for unit in range(len(plan.units)):
        made.append(unit)
        try:
            run_units(plan, out, [unit], say=lambda _: None)
        except KeyboardInterrupt:
            assert not (parts_of(out) / f"{unit:05d}").exists()
    monkeypatch.undo()
    assert 0 < run_units(plan, out, range(len(plan.units)), say=lambda _: None) < len(plan.units)
    merge(out)
    assert bytes_of(out) == results[0]

    documents = [d for split in ("train", "heldout") for d in read_documents(out, split, shuffle_seed=None)]
    names = {d.id for d in documents}
    assert len(documents) == len(names) == 58 and {"a.jsonl@8", "a.jsonl:8", "a.jsonl:3", "b.parquet:3"} <= names
    rules = read_index(out).report["rules"]["left out"]
    assert rules == {"missing": 1, "duplicate id": 1, "broken line": 1} and read_index(out).report["records"] == 61


@pytest.mark.slow
def test_workers_are_processes(chats, tmp_path, limner):
    code, said, err = limner("data", "from", "chat", chats, "--out", tmp_path / "out", "--workers", 2)
    assert code == 0 and f"{tmp_path / 'out'}: 58 documents in 4 shards; left out: " in said, err
    assert validate(tmp_path / "out") == [] and not parts_of(tmp_path / "out").exists()


def test_the_commands_of_tasks(chats, tmp_path, limner):
    out = tmp_path / "out"
    words = ("data", "from", "chat", chats, "--out", out, "--tasks", 2, "--task")
    code, _, err = limner("data", "merge", out)
    assert code == 2 and "plan.json" in err
    code, said, _ = limner(*words, 0)
    assert code == 0 and f"limner data merge {out}" in said
    code, _, err = limner("data", "merge", out)
    assert code == 2 and "1 of 2 units are missing (1); run their tasks" in err
    code, _, err = limner(*words, 2)
    assert code == 2 and "tasks are numbered from 0 to 1" in err
    code, _, err = limner("data", "from", "chat", chats, "--out", out, "--tasks", 2)
    assert code == 2 and "give both" in err
    code, _, err = limner(*words, 1, "--set", "text_only=drop")
    assert code == 2 and "another plan: options was {} and is {'text_only': 'drop'}" in err
    code, _, err = limner(*words, 1, "--unit-bytes", 900)
    assert code == 2 and "another plan: unit_bytes was" in err
    assert limner(*words, 1)[0] == 0
    code, said, _ = limner("data", "merge", out, "--keep-parts")
    assert code == 0 and "58 documents" in said and (parts_of(out) / PLAN).is_file()
    code, _, err = limner("data", "merge", out)
    assert code == 2 and "exists already" in err


def test_another_version_of_the_source_is_refused(chats, tmp_path):
    planned(chats, tmp_path / "out")
    file = parts_of(tmp_path / "out") / PLAN
    value = json.loads(file.read_text())
    file.write_text(json.dumps({**value, "code": "1 0123"}))
    with pytest.raises(InputError, match="another plan: code was '1 0123' and is"):
        planned(chats, tmp_path / "out")
    file.write_text(json.dumps({name: value[name] for name in value if name != "unit_bytes"}))
    with pytest.raises(InputError, match="no plan of this version of limner; remove"):
        planned(chats, tmp_path / "out")


def test_more_tasks_than_units_are_said(chats, tmp_path, limner):
    words = ("data", "from", "chat", chats, "--out", tmp_path / "out", "--unit-bytes", 10**6, "--tasks", 9, "--task")
    code, said, _ = limner(*words, 5)
    assert code == 0 and "0 of 0 units done" in said and "cut into 2 units, fewer than tasks" in said


def test_units_hold_everything_once(chats, tmp_path):
    for size in (1, 900, 10**9):
        units = list(units_of(chats, size))
        seen = []
        for unit in units:
            report = Report(stretch=unit)
            seen += [document.id for document, _ in open_source("chat").documents(chats, report)]
        whole = [document.id for document, _ in open_source("chat").documents(chats, Report())]
        assert seen == whole
    assert len(units) == 2
    tars = tmp_path / "tars"
    for number in range(3):
        put_tar(tars / f"{number}.tar", {f"{number}.png": encoded(), f"{number}.txt": b"a kite"})
    assert [unit.file for unit in units_of(tars, 1)] == ["0.tar", "1.tar", "2.tar"]
    plan = open_plan("webdataset", tars, {}, tmp_path / "t", 0.0)
    run_units(plan, tmp_path / "t", range(3), say=lambda _: None)
    assert len(list(read_documents(merge(tmp_path / "t").directory, "train", shuffle_seed=None))) == 3


def test_a_unit_without_a_document_is_no_fault(chats, tmp_path):
    plan = planned(chats, tmp_path / "out", unit_bytes=1)
    run_units(plan, tmp_path / "out", range(len(plan.units)), say=lambda _: None)
    assert len(plan.units) > 40 and sum(shard.records for shard in merge(tmp_path / "out").shards) == 58


def test_what_is_not_cut_says_so(tmp_path):
    put(tmp_path / "pages/a.md", "# A\n\ntext")
    with pytest.raises(InputError, match="markdown has nothing here that is cut .*run it without --tasks"):
        open_plan("markdown", tmp_path / "pages", {}, tmp_path / "out", 0.1)


@pytest.mark.slow
def test_datatrove_runs_the_tasks(chats, tmp_path):
    pytest.importorskip("datatrove")
    script = Path(__file__).resolve().parents[3] / "scripts/distributed_data.py"
    words = [
        sys.executable,
        str(script),
        "chat",
        str(chats),
        "--out",
        str(tmp_path / "out"),
        "--tasks",
        "9",
        "--workers",
        "1",
    ]
    for _ in range(2):  # the second finds all done
        subprocess.run(words, check=True, capture_output=True)
    assert sum(shard.records for shard in merge(tmp_path / "out").shards) == 58
