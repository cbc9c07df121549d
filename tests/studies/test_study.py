"""A study: what is run and in which order, what a folder takes up and refuses, what the figures over seeds are."""

import json
import random
from contextlib import ExitStack

import pytest
import yaml

from limner.configs import build, parse
from limner.configs.errors import InputError
from limner.configs.whole import write_atomically
from limner.studies import study
from limner.studies.config import StudyConfig, arm_settings, check, flags, flat, homes, running_order
from limner.studies.seed import taken
from limner.studies.summary import summarise

ARMS = {
    "control": {"kind": "control", "of": "full"},
    "guided": {"kind": "measure", "of": "full", "guidance": 1.5},
    "warmup": {"kind": "warmup", "label": "warm-up"},
    "with_kl": {"grpo": {"algorithm.beta": {"text": 0.1, "image": 0.1}}},
    "full": {},
    "same": {"grpo": {"algorithm": {"beta": {"text": 0}}}},
}
ROWS = [{"arm": name} for name in ARMS] + [{"arm": "full", "against": "warmup"}]
METRICS = ("sampled.story_exact", "greedy.story_exact", "understanding.vqa")


def config(out, **changes) -> StudyConfig:
    mapping = {
        "title": "A study",
        "arms": ARMS,
        "tables": [{"title": "All", "rows": ROWS}],
        "out": str(out),
        "seeds": 2,
    }
    return build(StudyConfig, {**mapping, **changes}, "test")


def result(settings, seed: int = 0, level: float = 0.4, curve=((0, 0.1), (5, 0.45), (10, 0.6))) -> dict:
    rng = random.Random(seed)
    return {
        "settings": settings,
        "items": {metric: [float(rng.random() < level) for _ in range(40)] for metric in METRICS},
        "seconds": 100.0 + seed,
        "steps": 10,
        "curve": [{"step": step, "seconds": 7.0 * step, "sampled_story_exact": value} for step, value in curve],
        "wall_seconds": 120.0,
    }


@pytest.fixture
def trained(monkeypatch) -> list[tuple[int, str]]:
    """Stands in for training; the list says what was asked of it. An arm called `cut` is killed."""
    asked = []

    def run_arm(config, name, root, seed):
        asked.append((seed, name))
        (root / "arms" / name).mkdir(parents=True)
        if name == "cut":
            raise KeyboardInterrupt
        return result(arm_settings(config, name), seed)

    monkeypatch.setattr(study, "run_arm", run_arm)
    return asked


def test_seed_by_seed_each_arm_after_the_one_it_builds_on(tmp_path, trained):
    found = study.run(config(tmp_path))
    order = ["warmup", "with_kl", "full", "control", "guided"]
    assert trained == [(seed, name) for seed in (0, 1) for name in order]
    assert not found["missing"] and found["arms"]["same"]["figures"] == found["arms"]["full"]["figures"]
    assert found == json.loads((tmp_path / "results.json").read_text())
    assert {"table.md", "figure.svg", "report.html", "study.yaml"} <= {path.name for path in tmp_path.iterdir()}


def test_only_what_is_missing_is_run(tmp_path, trained):
    first = study.run(config(tmp_path, seeds=1), ["with_kl"])
    assert trained == [(0, "warmup"), (0, "with_kl")]
    assert first["missing"] == {name: [0] for name in ("control", "guided", "full", "same")}
    study.run(config(tmp_path, seeds=1), ["guided"])
    assert trained[2:] == [(0, "full"), (0, "guided")]
    more = {**ARMS, "pairs": {"grpo": {"num_generations": 2}}, "full": {"label": "everything"}}
    found = study.run(config(tmp_path, arms=more), ["pairs"])
    assert trained[4:] == [(0, "pairs"), (1, "warmup"), (1, "pairs")]
    assert found["arms"]["full"]["seeds"] == [0] and found["arms"]["pairs"]["seeds"] == [0, 1]
    assert "everything" in (tmp_path / "table.md").read_text()


def test_an_arm_that_was_cut_starts_again(tmp_path, trained):
    arms = {"warmup": {"kind": "warmup"}, "full": {}, "cut": {"grpo": {"num_generations": 2}}}
    setting = config(tmp_path, arms=arms, tables=[], seeds=1)
    with pytest.raises(KeyboardInterrupt):
        study.run(setting)
    assert (tmp_path / "results.json").exists() and not (tmp_path / "seed-0/arms/cut/result.json").exists()
    with pytest.raises(KeyboardInterrupt):
        study.run(setting)
    assert trained == [(0, "warmup"), (0, "full"), (0, "cut"), (0, "cut")]


def test_an_arm_that_another_process_trains_is_left_to_it(tmp_path, trained, monkeypatch):
    """`full` is taken, so that its control has to wait; `with_kl` does not."""
    setting, stub = config(tmp_path, seeds=1), study.run_arm
    with ExitStack() as other:
        full = tmp_path / "seed-0" / "arms" / "full"
        assert other.enter_context(taken(full.with_name(".full.lock")))

        def ends_meanwhile(config, name, root, seed):
            if name == "with_kl":
                write_atomically(full / "result.json", json.dumps(result(arm_settings(config, "full"))))
                other.close()
            return stub(config, name, root, seed)

        monkeypatch.setattr(study, "run_arm", ends_meanwhile)
        found = study.run(setting)
    assert trained == [(0, name) for name in ("warmup", "with_kl", "control", "guided")] and not found["missing"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iterations": 61}, "full.*iterations|with_kl.*iterations"),
        ({"grpo": {"learning_rate": 1e-5}}, "learning_rate"),
        ({"arms": {**ARMS, "with_kl": {"grpo": {"algorithm.beta.text": 0.1}}}}, "with_kl.*algorithm.beta.image"),
        ({"curve_prompts": 64}, "seed-0.*curve_prompts"),
        ({"warmup": {"max_steps": 5}}, "seed-0.*warmup"),
    ],
)
def test_a_folder_of_other_settings_is_refused_before_anything_is_run(tmp_path, trained, change, words):
    study.run(config(tmp_path, seeds=1))
    trained.clear()
    with pytest.raises(InputError, match=words):
        study.run(config(tmp_path, **change))
    assert not trained


def test_settings_are_the_same_however_they_are_written():
    nested = {"algorithm": {"beta": {"text": 0.5}}, "learning_rate": "1e-4", "bf16": "false"}
    assert flat(nested) == {"algorithm.beta.text": 0.5, "learning_rate": 1e-4, "bf16": False}
    assert flat(flat(nested)) == flat({"algorithm.beta": {"text": 0.5}, "learning_rate": 1e-4, "bf16": False})
    assert flags({"a.b": 0.5, "c": False, "d": "x", "e": None}) == ["--a.b=0.5", "--c=false", "--d=x", "--e=null"]
    same = homes(config("unused"))
    assert same["same"] == "full" and [name for name in same if same[name] != name] == ["same"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": 0}, "seeds: expected a number 1 to"),
        ({"processes": 0}, "processes: expected a number 1 to"),
        ({"arms": {"full": {}}, "tables": []}, "exactly one"),
        ({"arms": {**ARMS, "../x": {}}}, "a name has"),
        ({"arms": {**ARMS, "x": {"kind": "control", "of": "warmup"}}}, "arms.x.of.*grpo"),
        ({"arms": {**ARMS, "x": {"kind": "measure"}}}, "arms.x.of"),
        ({"arms": {**ARMS, "x": {"of": "full"}}}, "arms.x.of"),
        ({"arms": {**ARMS, "x": {"kind": "measure", "of": "full", "grpo": {"learning_rate": 1}}}}, "arms.x.grpo"),
        ({"arms": {**ARMS, "x": {"grpo": {"rewards.text_plam": 0}}}}, "arms.x.grpo.*text_plam"),
        ({"arms": {**ARMS, "x": {"grpo": {"top_p": 0.9}}}}, "arms.x.grpo.*truncated"),
        ({"grpo": {"max_steps": 3}}, "grpo.max_steps.*sets it itself"),
        ({"warmup": {"max_stesp": 3}}, "warmup: .*max_steps"),
        ({"tables": [{"title": "T", "rows": [{"arm": "ful"}]}]}, "tables.0 .*'ful'"),
        ({"tables": [{"title": "T", "rows": [{"arm": "full", "marks": ["x"]}]}]}, "1 marks, columns 0"),
    ],
)
def test_a_fault_is_found_before_anything_is_run(tmp_path, trained, change, words):
    with pytest.raises(InputError, match=words):
        study.run(config(tmp_path / "out", **change))
    assert not trained and not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, trained, capsys):
    flags = ["--out", str(tmp_path), "--seeds", "1", "--grpo.algorithm.beta.text", "0.5", "--arms", "format,format"]
    study.main(["study/paper", *flags])
    assert trained == [(0, "warmup"), (0, "format")]
    kept = json.loads((tmp_path / "seed-0/arms/format/result.json").read_text())["settings"]
    assert kept["algorithm.beta.text"] == 0.5 and kept["rewards.format"] == 1
    assert kept["rewards.picture_stories/text_plan"] == 0
    with pytest.raises(InputError, match="'fromat' is none of"):
        study.main(["study/paper", "--out", str(tmp_path / "x"), "--arms=fromat"])
    with pytest.raises(InputError, match="configuration comes first"):
        study.main(["--seeds", "1"])
    with pytest.raises(InputError, match="near names: .*study/paper"):
        study.main(["study/papr"])
    said = []
    capsys.readouterr()
    for words in ([], ["--help"], ["study/paper", "--help"]):
        with pytest.raises(SystemExit) as leaving:
            study.main(words)
        assert leaving.value.code == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and said[0].startswith("usage: limner study CONFIG [--arms A,B]")


@pytest.mark.parametrize(("name", "arms"), [("study/paper", 11), ("study/beyond", 12), ("study/estimators", 11)])
def test_the_packaged_studies(name, arms):
    (packaged,) = parse((StudyConfig,), ["--config", name])
    check(packaged)
    assert len(running_order(packaged)) == len(packaged.arms) == arms
    assert {row.arm for table in packaged.tables for row in table.rows} == set(packaged.arms)
    batches = {arm_settings(packaged, arm).get("per_device_train_batch_size", 32) for arm in packaged.arms}
    assert batches == {32}, "every group size has as many rollouts a batch"


def test_the_two_studies_agree_on_what_they_share():
    paper, beyond = (parse((StudyConfig,), ["--config", name])[0] for name in ("study/paper", "study/beyond"))
    for arm in ("warmup", "full"):
        assert arm_settings(paper, arm) == arm_settings(beyond, arm)


def test_an_arm_may_have_batches_of_its_own(tmp_path):
    arms = {"warmup": {"kind": "warmup"}, "full": {}, "short": {"iterations": 1}, "same": {"iterations": 2}}
    setting = config(tmp_path, arms=arms, tables=[], iterations=2)
    assert [arm_settings(setting, name).get("iterations") for name in arms] == [None, 2, 1, 2]
    assert running_order(setting) == ["warmup", "full", "short"], "as many batches as the study's: the same arm"
    for arm, problem in (
        ({"iterations": 0}, "1 to 1,000,000"),
        ({"kind": "control", "of": "full", "iterations": 3}, "read"),
    ):
        with pytest.raises(InputError, match=rf"arms.short.iterations: .*{problem}"):
            check(config(tmp_path, arms=arms | {"short": arm}, tables=[]))


def test_time_left_goes_by_the_same_arm_then_by_its_kind():
    kinds = {"warmup": "warmup", "a": "grpo", "b": "grpo", "m": "measure"}
    left = [(1, "a"), (1, "b"), (1, "m")]
    assert study.seconds_left(kinds, {}, left) is None
    assert study.seconds_left(kinds, {(0, "a"): 10.0}, left) == 30
    done = {(0, "warmup"): 7.0, (0, "a"): 10.0, (0, "b"): 20.0, (0, "m"): 1.0}
    assert study.seconds_left(kinds, done, left) == 31


def test_figures_over_seeds(tmp_path):
    setting = config(tmp_path, seeds=3)
    late = ((0, 0.1), (5, 0.2), (10, 0.3))
    results = {
        "warmup": {seed: {**result({}, seed, 0.0), "curve": []} for seed in range(3)},
        "full": {0: result({}, 0, 1.0), 1: result({}, 1, 1.0, late), 2: result({}, 2, 0.0)},
        "with_kl": {1: result({}, 1, 0.5)},
    }
    found = summarise(setting, results)
    full, warm = found["arms"]["full"], found["arms"]["warmup"]
    story = full["figures"]["sampled.story_exact"]
    assert story["value"] == pytest.approx(2 / 3) and (story["lowest"], story["highest"]) == (0, 1)
    assert story["low"] == 0 and story["high"] == 1 and story["n"] == 120
    assert full["reach"] == {
        "seeds": 2,
        "of": 3,
        "step": {"value": 10, "lowest": 10, "highest": 10},
        "seconds": {"value": 70, "lowest": 70, "highest": 70},
    }
    assert full["curve"][1]["value"] == pytest.approx((0.45 + 0.2 + 0.45) / 3) and full["curve"][1]["lowest"] == 0.2
    assert warm["reach"] is None and warm["curve"] == [] and warm["seconds"]["value"] == 101
    assert found["tables"][0]["rows"][-1]["gain"]["sampled.story_exact"]["value"] == pytest.approx(2 / 3)
    assert found["missing"] == {"control": [0, 1, 2], "guided": [0, 1, 2], "with_kl": [0, 2]}


SMALL = {
    "title": "In small",
    "seeds": 1,
    "iterations": 2,
    "curve_prompts": 4,
    "world": {"heldout_prompts": 6, "train_prompts": 16, "interleaved": 40, "understanding": 24, "text_to_image": 24},
    "new_model": {
        "text_vocabulary": 512,
        "hidden_size": 32,
        "intermediate_size": 32,
        "layers": 1,
        "heads": 2,
        "image_tokenizer": {"autoencoder_steps": 2, "quantised_steps": 1, "decoder_steps": 1, "channels": [16]},
    },
    "warmup": {"max_steps": 2, "report_to": "none"},
    "grpo": {
        "preflight": False,  # nothing is to be learned from two steps of warm-up
        "num_generations": 4,
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
        "logging_steps": 1,
        "max_completion_length": 48,
        "report_to": "none",
    },
    "arms": {
        "warmup": {"kind": "warmup"},
        "fours": {},
        "pairs": {"grpo": {"num_generations": 2, "algorithm": {"outcome_weight": 1, "process_weight": 0}}},
        "more": {"kind": "control", "of": "pairs"},
        "guided": {"kind": "measure", "of": "pairs", "guidance": 1.5},
    },
    "tables": [{"title": "All", "rows": [{"arm": name} for name in ("warmup", "fours", "pairs", "more", "guided")]}],
}


@pytest.mark.slow
def test_a_study_in_small(tmp_path):
    file, out = tmp_path / "small.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(SMALL))
    study.main([str(file), "--out", str(out), "--processes", "2"])
    found = json.loads((out / "results.json").read_text())
    assert not found["missing"]
    for name, arm in found["arms"].items():
        assert arm["figures"]["sampled.story_exact"]["n"] == 6 and arm["figures"]["understanding.vqa"]["n"] >= 500, name
    assert [point["step"] for point in found["arms"]["pairs"]["curve"]] == [0]
    stamp = (out / "seed-0/arms/pairs/result.json").stat().st_mtime_ns
    study.main([str(file), "--out", str(out)])
    assert (out / "seed-0/arms/pairs/result.json").stat().st_mtime_ns == stamp
