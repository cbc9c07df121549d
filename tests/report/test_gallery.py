"""The gallery: answers of several checkpoints to one prompt stand beside each other, and hostile words stay words."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from limner.configs.errors import InputError
from limner.models.checkpoints.folder import save
from limner.models.checkpoints.hub import load_model
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment, data_uri
from limner.report.gallery import gallery_html, main, read_runs
from limner.train.watch.trajectories import write_trajectories

from .viewer.test_trajectories import make

HOSTILE = '</style><script>alert(1)</script>"><img src=http://x onerror=alert(1)>'


def answer(said: str, pictures: int = 1) -> InterleavedDocument:
    shown = (ImageSegment(Image.new("RGB", (8, 8), "red"), True, "generated"),) * pictures
    return InterleavedDocument((TextSegment(said, trainable=True), *shown))


def prompt(said: str) -> InterleavedDocument:
    return InterleavedDocument((TextSegment(said),))


def saved(folder, **answers):
    folder.mkdir(parents=True)
    for name, (asked, document) in answers.items():
        (folder / f"{name}.json").write_text(json.dumps((prompt(asked) + document).to_json()))
    return folder


def demo(folder):
    for arm, reward in (("warmup", 0.25), ("grpo_process", 1.0)):
        row = {
            "id": "held-out 1",
            "prompt": prompt("Tell of a crane.").to_json(),
            "pictures": 2,
            "answer": {
                "document": answer(f"By {arm}.").to_json(),
                "outcome": reward,
                "components": {"format": 1.0},
                "segments": [{"index": 0, "reward": 0.5, "parts": {}}],
            },
        }
        (folder / "arms" / arm).mkdir(parents=True)
        (folder / "arms" / arm / "result.json").write_text(json.dumps({"samples": [row]}))
    return folder


def evaluation(folder):
    folder.mkdir()
    verdicts = [
        {"aspect": "score", "score": 3.0, "failure": "", "words": "", "notes": {}},
        {"aspect": "other", "score": None, "failure": "no score", "words": "", "notes": {}},
    ]
    rows = [
        {"id": "a", "prompt": prompt("Tell of a crane.").to_json(), "answer": answer("Judged.").to_json()},
        {"id": "b", "prompt": None, "answer": None},
    ]
    (folder / "samples.json").write_text(json.dumps([{**row, "verdicts": verdicts} for row in rows]))
    (folder / "results.json").write_text(json.dumps({"title": "MMIE, official mode", "highest": 6}))
    return folder


def test_every_kind_of_run_stands_beside_the_others_by_what_the_prompt_says(tmp_path):
    runs = [
        demo(tmp_path / "d"),
        evaluation(tmp_path / "e"),
        saved(tmp_path / "s", x=("Tell of a  crane.\n", answer("Saved."))),
    ]
    columns = read_runs(runs)
    assert [one.label for one in columns] == ["d: Warm-up", "d: Process GRPO", "e", "s"]
    page = gallery_html(columns, 24)
    first, second = page.split("<article")[1:]
    order = [
        first.index(words) for words in ("Tell of a crane.", "By warmup.", "By grpo_process.", "Judged.", "Saved.")
    ]
    assert order == sorted(order) and first.count("Tell of a") == 1
    assert "outcome <b>0.25</b>" in first and "score <b>0.50</b>" in first and "other: no score" in first
    assert first.count(">No picture<") == 2, "of two pictures each arm of the demo drew one"
    assert "its prompt cannot be shown" in second and "The answer cannot be shown" in second
    assert second.count("No answer to this prompt.") == 3
    assert "2 prompts, 4 checkpoints." in page and "over the 1 prompt of" in page


def test_of_a_training_run_each_prompt_the_first_and_the_last_time(tmp_path):
    run = tmp_path / "run"
    for step in (0, 5, 10):
        rows = [make(step, 0, number, step / 10, "p", text=f"At {step}, {number}.") for number in range(2)]
        write_trajectories(run / "trajectories", step, 0, rows)
    page = gallery_html(read_runs([run]), 24)
    assert "run, first time" in page and "run, last time" in page and "At 5" not in page and "At 0, 1" not in page
    assert page.index("At 0, 0.") < page.index("step 0") < page.index("At 10, 0.") < page.index("step 10")
    assert [one.label for one in read_runs([run / "trajectories"])] == [
        "trajectories, first time",
        "trajectories, last time",
    ]
    alone = tmp_path / "alone"
    write_trajectories(alone / "trajectories", 0, 0, [make(0, 0, 0, 0.5, "p", cut=True)])
    assert [one.label for one in read_runs([alone])] == ["alone"]
    assert "an unfinished picture was left out" in gallery_html(read_runs([alone]), 1)


def test_hostile_words_stay_words_and_nothing_is_fetched(tmp_path):
    folder = saved(tmp_path / "<b>&", x=(HOSTILE, answer(HOSTILE, 0)))
    page = gallery_html(read_runs([folder]), 24)
    assert "<script" not in page and "<b>&" not in page.replace("<b>&ndash;", "") and "onerror=alert(1)&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "no picture" in page


def test_what_is_left_out_is_said_and_what_all_have_answered_comes_first(tmp_path):
    one = saved(tmp_path / "one", a=("Only here.", answer("1")), b=("Both.", answer("2")), c=("Both too.", answer("3")))
    two = saved(tmp_path / "two", b=("Both.", answer("4")), c=("Both too.", answer("5")))
    page = gallery_html(read_runs([one, two]), 2)
    assert "Only here." not in page and "Shown are 2; 1 more are left out" in page


def test_command(tmp_path, capsys):
    run, page = saved(tmp_path / "run", x=("Hello.", answer("Yes."))), tmp_path / "new" / "page.html"
    main([str(run), str(run / "x.json"), "--out", str(page)])
    said = f"{page}: 2 answers of 2 checkpoints, 1 prompt\nnext: open {page} in a browser\n"
    assert capsys.readouterr().out == said and page.is_file()
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.json").write_text('{"a": 1}')
    for words, fault in (
        (
            ["nowhere"],
            "nowhere: nothing to show; ask a model with --ask PROMPTS.jsonl, or give a folder of `limner eval`",
        ),
        ([str(tmp_path / "empty")], "empty: nothing to show"),
        ([str(tmp_path / "odd.json")], "odd.json: no document that limner saved"),
        ([str(run), "--out", str(tmp_path / "page.txt")], ".html"),
        ([str(run), "--prompts", "0"], "--prompts"),
        ([], "RUN"),
    ):
        with pytest.raises(InputError, match=fault):
            main(words)


def test_models_are_asked_the_first_prompts_of_a_file(tmp_path, make_policy, capsys):
    prompts, page = tmp_path / "prompts.jsonl", tmp_path / "page.html"
    lines = [f"Draw: {number}." for number in (3, 1, 2)]
    prompts.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    for seed in (1, 2):
        save(make_policy(seed), tmp_path / f"run{seed}" / "model")
    first, second = (str(tmp_path / f"run{seed}" / "model") for seed in (1, 2))
    words = ["--ask", str(prompts), "--prompts", "2", "--out", str(page)]
    main([first, *words, "--temperature", "0", "--title", f"Tales <of> {HOSTILE}"])
    shown = page.read_text()
    assert shown.index("Draw: 3.") < shown.index("Draw: 1.") and "Draw: 2." not in shown and "<script" not in shown
    assert "<h1>Tales &lt;of&gt;" in shown and '<div class="answers alone">' in shown
    said = (
        "The first 2 of 3 prompts of prompts.jsonl, in their order, each answered once at temperature 0, the likeliest"
    )
    assert said in shown and "2 answers of 1 checkpoint, 2 prompts" in capsys.readouterr().out
    own = load_model(first, "cpu").write_many(lines[:2], temperature=0)
    assert any(one.images for one in own)
    assert all(data_uri(image.pixels()) in shown for one in own for image in one.document.images)
    main([first, second, *words])
    assert "<h1>run1 and run2</h1>" in page.read_text() and "with the model&#x27;s own settings" in page.read_text()
    for wrong, fault in (
        ([first], "run1/model: is a model; say what to ask it: --ask"),
        ([first, "--temperature", "1"], "--temperature: is for --ask"),
        ([str(tmp_path), *words], "limner.json"),
        ([first, "--ask", str(tmp_path / "nowhere.jsonl")], "nowhere.jsonl"),
    ):
        with pytest.raises(InputError, match=fault):
            main(wrong)


def test_the_command_needs_no_torch():
    told = "import sys, limner.report.gallery; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "False\n"
