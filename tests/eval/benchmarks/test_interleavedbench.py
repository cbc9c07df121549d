"""InterleavedBench: whose picture is whose, what is zero and what is skipped, the averages, and a run over HTTP."""

import json
import re
from pathlib import Path

import pytest

from limner.configs.errors import InputError
from limner.eval.benchmark import Outcome, prompt_of
from limner.eval.benchmarks.interleavedbench import (
    ASPECTS,
    PUBLISHED,
    InterleavedBench,
    InterleavedBenchConfig,
    entries_of_text,
    read,
    text_of_entries,
)
from limner.eval.entries import Entry
from limner.eval.run import EvalConfig, evaluate
from limner.rewards.judges.grading import Verdict

from ...scripted_server import BROKEN, HANGING, MALFORMED, TOO_MANY, ScriptedServer, images, texts
from ..benchmark_data import eval_config, judge_config, picture, results

EDIT, CONCEPT, REPORT = "sequential_image_editing", "multi_concept_composition", "report_generation"


def write_bench(folder: Path, *tasks: str) -> Path:
    """A record a task: one picture in the prompt, one in the reference."""
    records = []
    for number, task in enumerate(tasks):
        names = [
            picture(folder / "images" / f"{number}-{who}.png", colour)
            for who, colour in (("own", "blue"), ("reference", "red"))
        ]
        turns = [
            {"from": "human", "value": f"<BEGIN> Continue {number}. <image> What comes next?"},
            {"from": "gpt", "value": f"Answer {number}. <image> The end."},
        ]
        records.append({"id": f"{task}_{number}", "image": names, "task_name": task, "conversations": turns})
    (folder / "interleaved_bench.json").write_text(json.dumps(records))
    return folder / "interleaved_bench.json"


def aspect_of(body) -> str:
    """Whose of the five templates asked."""
    said = " ".join(texts(body).split())
    asked = {
        "text_quality": "the quality of its text",
        "perceptual_quality": "how its pictures look",
        "image_coherence": "whether its pictures belong together",
        "text_image_coherence": "whether its text and its pictures fit each other",
        "helpfulness": "how well it serves the request",
    }
    (found,) = [aspect for aspect, words in asked.items() if words in said]
    return found


def outcomes(benchmark: InterleavedBench, scores: dict[str, dict[str, float]]) -> list[Outcome]:
    """{item id: {aspect: score}} as outcomes."""
    items = {item.id: item for item in benchmark.items}
    return [Outcome(items[name], aspect, score) for name, row in scores.items() for aspect, score in row.items()]


def test_published_averages_are_the_means_of_the_aspects(tmp_path):
    benchmark = InterleavedBench([item for item, _ in read(write_bench(tmp_path, REPORT))], InterleavedBenchConfig())
    for name, (*means, average) in PUBLISHED:
        found = outcomes(benchmark, {f"{REPORT}_0": dict(zip(ASPECTS, means, strict=True))})
        assert benchmark.scores(found)["AVG"]["value"] == pytest.approx(average, abs=0.0051), name
    assert sum((4.37, 4.36, 3.51, 4.55, 3.88)) / 5 == pytest.approx(4.134)


def test_average_is_the_mean_of_aspect_means_not_of_items(tmp_path):
    """A skipped or failed score leaves the aspect's mean alone; it is not a zero."""
    benchmark = InterleavedBench([i for i, _ in read(write_bench(tmp_path, REPORT, EDIT))], InterleavedBenchConfig())
    full = dict.fromkeys(ASPECTS, 4.0)
    rest = {name: 1.0 for name in ASPECTS if name not in ("text_quality", "text_image_coherence")}
    scores = benchmark.scores(outcomes(benchmark, {f"{REPORT}_0": full, f"{EDIT}_1": rest}))
    assert scores["text_quality"]["value"] == 4 and scores["helpfulness"]["value"] == 2.5
    assert scores["AVG"]["value"] == pytest.approx((4 + 2.5 + 2.5 + 4 + 2.5) / 5)
    assert scores["AVG"]["low"] <= scores["AVG"]["value"] <= scores["AVG"]["high"] and scores["AVG"]["n"] == 2
    assert benchmark.scores([]) == {}


@pytest.mark.parametrize(
    ("config", "skipped"),
    [
        (InterleavedBenchConfig(), {EDIT, CONCEPT}),
        (InterleavedBenchConfig(["editing"]), {EDIT}),
        (InterleavedBenchConfig([]), set()),
        (InterleavedBenchConfig([], [REPORT]), {REPORT}),
    ],
)
def test_text_aspects_are_skipped_by_rule(config, skipped, tmp_path):
    items = [item for item, _ in read(write_bench(tmp_path, EDIT, CONCEPT, REPORT))]
    benchmark = InterleavedBench(items, config)
    assert {item.category for item in items if len(benchmark.aspects(item)) == 3} == skipped
    assert all(len(benchmark.aspects(item)) == (3 if item.category in skipped else 5) for item in items)


def test_references_never_reach_the_model(tmp_path):
    ((item, given),) = read(write_bench(tmp_path, REPORT))
    prompt = prompt_of(item)
    assert prompt.text == "Continue 0. What comes next?"
    assert [shown.pixels().getpixel((0, 0)) for shown in prompt.images] == [(0, 0, 255)]
    assert given is not None and given.entries[0].image is not None and given.entries[0].image.name == "0-reference.png"


def test_what_the_answer_lacks_is_zero_and_is_not_asked(tmp_path):
    ((item, given),) = read(write_bench(tmp_path, REPORT))
    benchmark = InterleavedBench([item], InterleavedBenchConfig())
    image = given.entries[0].image
    lacking = {
        (Entry("Text."),): {"perceptual_quality", "image_coherence", "text_image_coherence"},
        (Entry(None, image), Entry("  ")): {"text_quality", "text_image_coherence"},
        (): set(ASPECTS),
        (Entry("Text.", image),): set(),
    }
    for entries, zero in lacking.items():
        tasks = benchmark.tasks(item, type(given)(entries))
        assert {task.aspect for task in tasks if isinstance(task.ask, Verdict)} == zero
        assert all(task.ask.score == 0 for task in tasks if isinstance(task.ask, Verdict))


@pytest.mark.parametrize("text", ["a<image>b", "<image><image>b", "<image>", "a", "", "a <image>", "a<image><image>"])
def test_text_and_pictures_round_trip(text):
    files = [Path(f"{number}.png") for number in range(text.count("<image>"))]
    assert text_of_entries(entries_of_text(text, files)) == (text, files)


def test_faults_name_record_and_field(tmp_path):
    data = write_bench(tmp_path, REPORT)
    (record,) = json.loads(data.read_text())
    changes = {
        "`conversations`": {"conversations": [{"from": "human"}]},
        "`image`": {"image": "one.png"},
        "0 pictures": {"image": []},
        "`task_name`": {"task_name": None},
        "outside": {"image": ["/etc/hosts", "../../y.png"]},
    }
    for words, change in changes.items():
        data.write_text(json.dumps([{**record, **change}]))
        with pytest.raises(InputError, match=re.escape(words)) as fault:
            read(data)
        assert f"{REPORT}_0" in str(fault.value)
    data.write_text(json.dumps([{**record, "image": record["image"][:1]}]))
    ((_, given),) = read(data)
    assert given is not None and given.failure == "unusable answer"  # the prompt has its picture all the same


def test_run_with_faults(tmp_path):
    """Five questions an item but for those skipped; figures by task; a lasting fault is counted."""
    faults = [TOO_MANY, HANGING, BROKEN, MALFORMED]
    scores = dict(zip(ASPECTS, (1, 2, 3, 4, 5), strict=True))

    def script(body):
        if faults:
            return faults.pop()
        lost = aspect_of(body) == "helpfulness" and "Continue 1." in texts(body)
        return "None." if lost else f"<score>{scores[aspect_of(body)]}</score>"

    data = write_bench(tmp_path / "data", REPORT, REPORT, EDIT)
    with ScriptedServer(script) as server:
        config = eval_config(data, tmp_path / "out", server.url, benchmark="interleavedbench")
        config.judge.endpoint.timeout, config.judge.endpoint.retries = 3.0, 4
        assert evaluate(config)
        answered = [body for body in server.bodies if len(images(body)) == 2]
    found = results(config.out)
    assert len(answered) == len(server.bodies) == 13 + 4
    assert found["accounting"]["failed"] == {"no score": 1} and found["accounting"]["scored"] == 12
    assert {name: score["value"] for name, score in found["scores"].items()} == {**scores, "AVG": 3}
    whole, tasks = found["tables"]
    assert [name for name, _ in tasks["rows"]] == [REPORT, EDIT] and tasks["rows"][1][1][0] is None
    assert tasks["rows"][1][1][-1]["value"] == pytest.approx((2 + 3 + 5) / 3) and len(whole["published"]) == 8
    assert any(EDIT in caveat and "1 items" in caveat for caveat in found["caveats"])
    assert any("subject_driven" in caveat and "skip_tasks" in caveat for caveat in found["caveats"])


def test_real_records(real_data, tmp_path):
    """Photographs in prompt and answer; exported and scored again, the figures are the same."""
    data = real_data / "interleavedbench_schema" / "interleaved_bench.json"
    if not data.is_file():
        pytest.skip(f"no {data}")
    with ScriptedServer(lambda body: f"<score>{1 + len(texts(body)) % 5}</score>") as server:
        runs = {"one": (data, str(tmp_path / "exported")), "two": (tmp_path / "exported" / data.name, "")}
        for name, (answers, export) in runs.items():
            config = EvalConfig(
                "interleavedbench",
                answers=str(answers),
                out=str(tmp_path / name),
                export=export,
                judge=judge_config(server.url, image_side=64),
            )
            assert evaluate(config)
        shown = sorted(len(images(body)) for body in server.bodies)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert shown == [2] * 10 + [4] * 10
    assert one["scores"] == two["scores"] and one["accounting"]["scored"] == 10 and not one["accounting"]["failed"]
