"""DPG-Bench: propositions and what they depend on, the official script's ways, grids of pictures, a run over HTTP."""

import json
from dataclasses import asdict

import pytest
from PIL import Image

from limner.configs import parse
from limner.configs.errors import InputError
from limner.eval.benchmark import Outcome
from limner.eval.benchmarks.dpgbench import DPGBench, DPGBenchConfig, Proposition, holding, quarter, read, read_replies
from limner.eval.run import EvalConfig, evaluate, evaluations

from ...scripted_server import BROKEN, ScriptedServer, images, texts
from ..benchmark_data import judge_config, results

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
ROWS = (
    'stew,"A pot, blue, on a stove.",,1,0,entity,whole,entity - whole (pot),Is there a pot?',
    'stew,"A pot, blue, on a stove.",,2,1,attribute,color,"attribute - color (pot, blue)",Is the pot blue?',
    'stew,"A pot, blue, on a stove.",,3,"1,2",relation,spatial,"relation - spatial (pot, stove, on)",Is it on a stove?',
    "2,Two cats.,,1,0,entity,whole,entity - whole (cats),Are there cats?",
    '2,Two cats.,,2,1,other,count,"other - count (cats, ==2)","Are there two, exactly two, cats?"',
)
COLOURS = ("red", "green", "blue", "white")


def write_csv(folder, *rows):
    (folder / "dpg_bench.csv").write_text("\n".join((HEADER, *rows)) + "\n")
    return folder / "dpg_bench.csv"


def write_grid(folder, name):
    """Quarters of four colours, row by row."""
    grid = Image.new("RGB", (32, 32))
    for number, colour in enumerate(COLOURS):
        grid.paste(Image.new("RGB", (16, 16), colour), (number % 2 * 16, number // 2 * 16))
    folder.mkdir(exist_ok=True)
    grid.save(folder / f"{name}.png")


def chain(*parents):
    return [Proposition(number, tuple(of), "entity - whole", "?") for number, of in enumerate(parents, 1)]


@pytest.mark.parametrize(
    ("parents", "answers", "holds"),
    [
        ([(), (1,), (2,)], [True, True, True], [True, True, True]),
        ([(), (1,), (2,)], [False, True, True], [False, False, False]),  # the failed child fails its own
        ([(), (), (1, 2)], [True, False, True], [True, False, False]),
        ([(2,), (3,), ()], [True, True, False], [True, False, False]),  # 2 fails only after 1 has been looked at
        ([(), (1,)], [None, True], [None, None]),
        ([(), (1,)], [None, False], [None, False]),  # no, whatever the parent is
        ([(), (), (1, 2)], [None, False, True], [None, False, False]),
    ],
)
def test_a_proposition_holds_only_with_its_parents(parents, answers, holds):
    assert holding(chain(*parents), dict(enumerate(answers, 1))) == holds


def outcomes(benchmark, said):
    """{item id: answers in the propositions' order}"""
    return [
        Outcome(item, aspect, None if answer is None else float(answer))
        for item in benchmark.items
        if item.id in said
        for aspect, answer in zip(benchmark.aspects(item), said[item.id], strict=True)
    ]


def values(benchmark, said):
    return {name: round(score["value"], 2) for name, score in benchmark.scores(outcomes(benchmark, said)).items()}


def test_figures(tmp_path):
    """Pictures, then prompts are averaged; groups count the answers as given."""
    items = [item for item, _ in read(write_csv(tmp_path, *ROWS))]
    assert [item.id for item in items[:5]] == ["stew/0", "stew/1", "stew/2", "stew/3", "2/0"]
    assert items[0].question[0].text == "A pot, blue, on a stove."
    said = {"stew/0": (1, 0, 1), "stew/1": (1, 1, 1), "2/0": (0, 1), "2/1": (1, 1)}
    full = DPGBench(items, DPGBenchConfig(samples=2))
    # stew: 1/3 and 1; cats: 0 and 1
    assert values(full, said) == {
        "overall": 58.33,
        "entity": 75,
        "attribute": 50,
        "relation": 100,
        "other": 100,
        "attribute - color": 50,
        "entity - whole": 75,
        "other - count": 100,
        "relation - spatial": 100,
    }
    lost = {**said, "stew/0": (None, 0, 1), "2/0": (None, None)}
    found = values(full, lost)  # stew/0: two of three are no, the first is open; 2/0 does not count
    assert found["overall"] == pytest.approx((50 + 100) / 2) and found["entity"] == 100
    assert any("3 questions have no answer" in caveat for caveat in full.caveats(outcomes(full, lost)))
    assert full.scores([]) == {}


def test_official_mode_loses_what_the_script_loses(tmp_path):
    """Its first proposition, with it the prompt that depends on it, and all pictures but the last in the groups."""
    items = [item for item, _ in read(write_csv(tmp_path, *ROWS))]
    benchmark = DPGBench(items, DPGBenchConfig(mode="official", samples=2))
    assert [len(benchmark.aspects(item)) for item in benchmark.items] == [2, 2, 2, 2]
    (first, *_) = benchmark.items
    assert {task.ask.failure for task in benchmark.tasks(first, None)} == {"unknown parent"}
    assert values(benchmark, {"stew/0": (None, None), "2/0": (1, 1), "2/1": (0, 1)}) == {
        "overall": 50,
        "entity": 0,
        "other": 100,
        "entity - whole": 0,
        "other - count": 100,
    }


def test_quarters():
    grid = Image.new("RGB", (5, 4))
    grid.putpixel((2, 2), (255, 0, 0))
    assert [quarter(grid, number).getbbox() for number in range(4)] == [None, None, None, (0, 0, 1, 1)]
    assert quarter(grid, 3).size == (2, 2)


def test_a_run_over_grids(tmp_path):
    """Each quarter is asked about alone; a lasting fault and a prompt without a file are counted, not a no."""
    data = write_csv(tmp_path, *ROWS)
    write_grid(tmp_path / "made", "stew")
    (tmp_path / "made" / "dpg-bench_results.txt").write_text("what the official script leaves there")
    asked = []

    def reply(body):
        (shown,) = images(body)
        colour = COLOURS[[(255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)].index(shown.getpixel((8, 8)))]
        asked.append((colour, "a pot?" in texts(body), "blue?" in texts(body)))
        if colour == "white" and "stove?" in texts(body):
            return BROKEN
        no = colour == "red" or (colour == "green" and "blue?" in texts(body))
        return f"I see it.\n<answer>{'no' if no else 'yes'}</answer>"

    with ScriptedServer(reply) as server:
        config = EvalConfig(
            benchmark="dpgbench",
            answers=str(tmp_path / "made"),
            data=str(data),
            out=str(tmp_path / "out"),
            judge=judge_config(server.url, retries=0),
        )
        assert evaluate(config)
    assert len(asked) == 12 and {colour for colour, *_ in asked} == set(COLOURS)
    outcome = results(tmp_path / "out")
    assert outcome["scores"]["overall"]["value"] == pytest.approx(100 * (0 + 1 / 3 + 1 + 1) / 4)
    assert outcome["scores"]["attribute - color"]["value"] == 50
    assert outcome["accounting"]["failed"] == {"no answer: not in the file": 8, "server error": 1}
    assert outcome["manifest"]["scoring"]["template"].startswith("pictures.v1@")
    config.answers = str(write_and_name(tmp_path, "soup"))
    with pytest.raises(InputError, match="answers 'soup/0'.*does not ask"):
        evaluate(config)
    with pytest.raises(InputError, match="dpg_bench.csv with --data"):
        evaluate(EvalConfig(benchmark="dpgbench", answers=str(tmp_path / "made"), out=str(tmp_path / "alone")))


def write_and_name(folder, name):
    write_grid(folder / "other", name)
    return folder / "other"


def test_replies_of_the_official_script(tmp_path):
    data = write_csv(tmp_path, *ROWS)
    write_grid(tmp_path / "made", "2")
    lines = [
        "out, 1/2.png, (0, 0, 512, 512), Are there cats?, yes",
        "out, 1/2.png, (0, 0, 512, 512), Are there two, exactly two, cats?, no",
        "out, 1/2.png, (512, 0, 1024, 512), Are there cats?, no",
        "out, 1/2.png, (512, 0, 1024, 512), Are there two, exactly two, cats?, yes",
    ]
    (tmp_path / "detail.txt").write_text("\n".join(lines) + "\n")
    assert read_replies(tmp_path / "detail.txt")["2/1", "Are there two, exactly two, cats?"]
    own = DPGBenchConfig(by="replies", replies=str(tmp_path / "detail.txt"), samples=2)
    config = EvalConfig(
        benchmark="dpgbench",
        answers=str(tmp_path / "made"),
        data=str(data),
        out=str(tmp_path / "out"),
        options=asdict(own),
    )
    assert evaluate(config)  # no judge
    outcome = results(tmp_path / "out")
    assert outcome["scores"]["overall"]["value"] == 25 and outcome["scores"]["entity"]["value"] == 50
    (tmp_path / "detail.txt").write_text("2.png, None, Are there cats?, yes\n")
    with pytest.raises(InputError, match="detail.txt:1"):
        DPGBench([], own)


def test_faults_name_the_line(tmp_path):
    for row, message in {
        ROWS[0].replace(",0,entity", ",one,entity"): "line 2: `proposition_id` and `dependency`",
        "stew,A pot.": "line 2: ends before",
        f"{ROWS[0]}\n{ROWS[0]}": "line 3: stew has a proposition 1 already",
        "": "holds no propositions",
    }.items():
        with pytest.raises(InputError, match=message):
            read(write_csv(tmp_path, row))
    (tmp_path / "dpg_bench.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column `item_id`"):
        read(tmp_path / "dpg_bench.csv")
    with pytest.raises(InputError, match="no pictures"):
        read(tmp_path)
    with pytest.raises(InputError, match="samples: .*1 to 4, got 5"):
        DPGBenchConfig(samples=5)
    with pytest.raises(InputError, match="by, replies"):
        DPGBenchConfig(by="replies")


def test_it_can_join_the_capabilities():
    """The suite's own settings hold for it, and the judge is given once."""
    words = ["--config", "eval/capabilities", "--model", "m", "--judge.endpoint.model", "judge"]
    suite = json.dumps({"benchmark": "dpgbench", "data": "dpg_bench.csv", "sampling": {"max_images": 1}})
    (config,) = parse((EvalConfig,), [*words, "--suite.dpgbench", suite])
    runs = {run.benchmark: run for run in evaluations(config)}
    assert list(runs) == ["pope", "mme", "geneval", "dpgbench"]
    run = runs["dpgbench"]
    assert (run.data, run.model, run.out) == ("dpg_bench.csv", "m", "runs/capabilities/dpgbench")
    assert run.judge.endpoint is not None and run.judge.endpoint.model == "judge"
    assert run.sampling.max_images == 1
