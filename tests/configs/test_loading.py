"""Configurations: found by name, read strictly, overridden by flags, saved whole."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml
from transformers import TrainingArguments
from trl import GRPOConfig

from limner import configs
from limner.configs import build, find_config, packaged_names, parse, read_yaml, save_resolved
from limner.configs.errors import InputError
from limner.models.chat.choice import ChatConfig
from limner.models.chat.endpoint import EndpointConfig


class Device(Enum):
    CPU = "cpu"
    GPU = "gpu"


@dataclass
class Judge:
    model: str = "none"
    retries: int = 2


@dataclass
class Rewards:
    text: float = 1.0
    """Weight of the text."""
    image: float = 1.0
    judge: Judge = field(default_factory=Judge)


@dataclass
class Source:
    path: str
    weight: float = 1.0


@dataclass
class Plain:
    name: str
    steps: int = 10
    rate: float = 0.1
    verbose: bool = False
    mode: Literal["on", "no"] = "on"
    device: Device = Device.CPU
    limit: int | None = 4
    grid: tuple[int, int] = (4, 4)
    sizes: list[int] = field(default_factory=list)
    """100 % of them."""
    rewards: Rewards = field(default_factory=lambda: Rewards(image=3.0))
    sources: list[Source] = field(default_factory=list)
    judges: dict[str, Judge] = field(default_factory=lambda: {"a": Judge("x"), "b": Judge("y")})
    scales: dict[str, float] | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError("steps must not be negative")


@dataclass
class Weights:
    text_plan: float = 1.0
    image_plan: float = 1.0


@dataclass
class Wide:
    weights: Weights = field(default_factory=Weights)
    by_name: dict[str, Weights] = field(default_factory=dict)


@dataclass
class Arguments(TrainingArguments):
    pace: float = 1.0


@pytest.fixture
def read(tmp_path):
    """Writes YAML to a file and reads it as `Plain` with flags."""

    def run(text: str, *flags: str, types=(Plain,)):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        values = parse(types, ["--config", str(path), *flags], "limner test")
        return values[0] if len(values) == 1 else values

    return run


def test_yaml_then_flags(read):
    value = read("name: a\nsteps: 3\nrate: 1e-3\nmode: no\ndevice: gpu\nlimit: null\n", "--steps", "5", "--verbose")
    assert (value.name, value.steps, value.rate, value.mode) == ("a", 5, 1e-3, "no")
    assert (value.device, value.limit, value.verbose, value.grid) == (Device.GPU, None, True, (4, 4))


def test_without_a_file():
    (value,) = parse([Plain], ["--name", "7", "--sizes", "1", "2", "--limit", "null", "--grid", "[2, 3]"])
    assert (value.name, value.sizes, value.limit, value.grid) == ("7", [1, 2], None, (2, 3))
    assert parse([Plain], ["--name=null"])[0].name == "null"


def test_sections_from_yaml_keep_their_defaults(read):
    value = read("name: a\nrewards:\n  text: 2\n  judge: {model: m}\nsources:\n  - path: p\n")
    assert value.rewards == Rewards(2.0, 3.0, Judge("m"))
    assert value.sources == [Source("p")]


def test_dotted_flags(read):
    text = "name: a\nrewards: {text: 2}\nsources: [{path: p}]\n"
    value = read(text, "--rewards.text", "-0.5", "--rewards.judge.model=7", "--sources.0.weight", "4")
    assert value.rewards == Rewards(-0.5, 3.0, Judge("7"))
    assert value.sources == [Source("p", 4.0)]
    value = read("name: a\n", "--judges.b.retries", "9", "--scales.text", "1e-2")
    assert value.judges == {"a": Judge("x"), "b": Judge("y", 9)} and value.scales == {"text": 0.01}
    assert read("name: a\njudges: {c: {}}\n", "--rewards", "{text: 5}").judges == {"c": Judge()}


def test_dashes_in_flags_are_underscores_of_fields(read):
    """Keys of a mapping stay as they are."""
    (value,) = parse([Wide], ["--weights.text-plan", "2", "--weights.image_plan=3", "--by-name.a-b.text-plan", "4"])
    assert value.weights == Weights(2.0, 3.0) and value.by_name == {"a-b": Weights(4.0)}
    _one_line(
        lambda: parse([Wide], ["--weights.text-plam", "2"]), "--weights.text-plam: unknown key; did you mean text_"
    )


FAULTS = {
    "name: a\nstep: 3": "c.yaml: step: unknown key; did you mean steps?",
    "name: a\nsteps: many": "c.yaml: steps: expected int, got 'many'",
    "name: a\nsteps: 1.5": "c.yaml: steps: expected int, got 1.5",
    "name: a\nsteps: true": "c.yaml: steps: expected int, got True",
    "name: a\nrate: abc": "c.yaml: rate: expected float, got 'abc'",
    "name: a\nrate: [1]": "c.yaml: rate: expected float, got [1]",
    "name: a\nverbose: 3": "c.yaml: verbose: expected bool, got 3",
    "name: 7": "c.yaml: name: expected str, got 7",
    "name: a\nmode: of": "c.yaml: mode: expected one of on, no, got 'of'",
    "name: a\ndevice: gpus": "c.yaml: device: expected one of cpu, gpu, got 'gpus'; did you mean gpu?",
    "name: a\ndevice: {a: 1}": "c.yaml: device: expected one of cpu, gpu, got {'a': 1}",
    "name: a\ngrid: [1, 2, 3]": "c.yaml: grid: expected a list of 2",
    "name: a\nsizes: 3": "c.yaml: sizes: expected a list, got 3",
    "name: a\nsizes: [1, x]": "c.yaml: sizes.1: expected int, got 'x'",
    "name: a\nrewards: {txt: 1}": "c.yaml: rewards.txt: unknown key; did you mean text?",
    "name: a\nrewards: {judge: {retries: x}}": "c.yaml: rewards.judge.retries: expected int, got 'x'",
    "name: a\nrewards: 3": "c.yaml: rewards: expected a mapping (Rewards), got 3",
    "name: a\nsources: [{weight: 1}]": "c.yaml: sources.0.path: missing",
    "name: a\njudges: {c: {modle: x}}": "c.yaml: judges.c.modle: unknown key; did you mean model?",
    "name: a\nenv: {X: 1}": "c.yaml: env: unknown key",
    "1: a": "c.yaml: 1: unknown key",
    "steps: 3": "c.yaml: name: missing",
    "name: a\nsteps: -1": "c.yaml: steps must not be negative",
    "name: a\nname: b": "c.yaml: line 2: name is given twice",
    "name: a\n b: [": "c.yaml: line 2:",
    "- a": "c.yaml: expected a mapping of `key: value` lines, but found a list",
    "": "but the file is empty",
}


@pytest.mark.parametrize("text", FAULTS)
def test_faults_in_yaml(read, text):
    _one_line(lambda: read(text), FAULTS[text])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", "3"], "--step: unknown key; did you mean steps?"),
        (["--steps", "x"], "--steps: expected int, got 'x'"),
        (["--steps"], "command line: argument --steps: expected one argument"),
        (["--rewards.txt", "1"], "--rewards.txt: unknown key; did you mean text?"),
        (["--rewards.text", "x"], "--rewards.text: expected float, got 'x'"),
        (["--rewards.text"], "--rewards.text: expected a value after it"),
        (["--rewards.text.more", "1"], "--rewards.text.more: rewards.text has no part more"),
        (["--steps.more", "1"], "--steps.more: unknown key"),
        (["--judges.a.modle", "z"], "--judges.a.modle: unknown key; did you mean model?"),
        (["--sources.3.weight", "1"], "--sources.3.weight: sources has no part 3"),
        (["--mode", "of"], "invalid choice: 'of'"),
        (["stray"], "command line: 'stray' belongs to no flag"),
        (["--config"], "argument --config: expected one argument"),
    ],
)
def test_faults_in_flags(read, flags, message):
    _one_line(lambda: read("name: a\nsources: []\nrewards: {text: 1}\n", *flags), message)


def test_training_arguments(read, tmp_path):
    text = f"output_dir: {tmp_path}\nuse_cpu: true\neval_strategy: no\npace: 2\nname: a\n"
    arguments, plain = read(
        f"{text}learning_rate: 1e-3\n", "--max_steps", "3", "--optim", "sgd", types=(Arguments, Plain)
    )
    assert (arguments.learning_rate, arguments.max_steps, arguments.pace) == (1e-3, 3, 2.0)
    assert arguments.optim == "sgd" and plain.name == "a"
    for line, message in {
        "learning_rate: abc": "c.yaml: learning_rate: expected float, got 'abc'",
        "learning_rte: 1": "c.yaml: learning_rte: unknown key; did you mean learning_rate",
        "save_strategy: stps": "c.yaml: save_strategy: expected one of no, steps, epoch, best",
        "logging_steps: 0.5\nlogging_strategy: 3": "c.yaml: logging_strategy: expected one of",
        "push_to_hub: perhaps": "c.yaml: push_to_hub: expected bool",
    }.items():
        _one_line(lambda line=line: read(f"{text}{line}\n", types=(Arguments, Plain)), message)


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("save_strategy: no\nsave_steps: 2", (), "c.yaml: save_steps: has no effect, for save_strategy is no; give"),
        ("save_strategy: no", ("--save_steps", "2"), "--save_steps: has no effect"),
        ("save_strategy: no", ("--save_steps", "500"), "--save_steps: has no effect"),
        ("save_strategy: no\nsave_total_limit: 3", (), "c.yaml: save_total_limit: has no effect"),
        ("save_strategy: no", ("--save_only_model", "true"), "--save_only_model: has no effect"),
        ("save_strategy: no", ("--push_to_hub", "true"), "--push_to_hub: has no effect"),
        ("save_strategy: epoch", ("--save_steps", "9"), "--save_steps: has no effect, for save_strategy is epoch"),
        ("save_steps: 0", (), "c.yaml: save_steps: 0 is no number of steps"),
        ("save_total_limit: 0", (), "c.yaml: save_total_limit: expected a number 1 to"),
        ("", ("--load_best_model_at_end", "true"), "--load_best_model_at_end: transformers evaluates nothing"),
        ("save_strategy: best", (), "c.yaml: save_strategy: transformers evaluates nothing"),
        ("metric_for_best_model: reward", (), "c.yaml: metric_for_best_model: transformers evaluates nothing"),
        ("", ("--eval_strategy", "steps"), "--eval_strategy: transformers evaluates nothing"),
        ("hub_model_id: a/b", (), "c.yaml: hub_model_id: has no effect without push_to_hub"),
    ],
)
@pytest.mark.parametrize("kind", [TrainingArguments, GRPOConfig])
def test_settings_that_could_not_take_effect_are_refused(read, tmp_path, kind, text, flags, said):
    base = f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\n"
    _one_line(lambda: read(f"{base}{text}\n", *flags, types=(kind,)), said)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("save_steps: 50\nsave_total_limit: 2", ("--save_strategy", "no")),  # a flag turns off what the file says
        ("save_strategy: no\nsave_steps: 500", ()),  # as `save_resolved` writes them
        ("save_strategy: no", ("--load_best_model_at_end", "false", "--eval_strategy", "no")),
        ("save_strategy: epoch\nsave_total_limit: 1", ()),
    ],
)
def test_settings_that_a_flag_or_a_default_overrides_are_no_fault(read, tmp_path, text, flags):
    base = f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\n"
    assert read(f"{base}{text}\n", *flags, types=(GRPOConfig,)).save_strategy in ("no", "epoch")


def test_an_old_name_of_a_setting_is_read_as_its_new_one(read, tmp_path, recwarn):
    base = f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\n"

    def found(text: str, *flags: str) -> bool | None:
        return read(f"{base}{text}\n", *flags, types=(TrainingArguments,)).activation_checkpointing

    old, new = "gradient_checkpointing", "activation_checkpointing"
    assert found(f"{old}: true") is True and found(f"{old}: true\n{new}: true") is True
    assert found(f"{new}: false", f"--{old}", "true") is True and found(f"{old}: false", f"--{new}", "true") is True
    assert not [one for one in recwarn if "deprecated" in str(one.message)]
    for text, flags in ((f"{old}: true\n{new}: false", ()), ("", (f"--{old}", "true", f"--{new}", "false"))):
        _one_line(lambda text=text, flags=flags: found(text, *flags), f"{old}: is called {new} now")
    save_resolved(saved := tmp_path / "r.yaml", read(f"{base}{old}: true\n", types=(GRPOConfig,)))
    assert old not in read_yaml(saved) and read_yaml(saved)[new] is True


def test_own_checks_of_a_class_become_one_line(read, tmp_path):
    text = f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nnum_generations: 5\n"
    _one_line(lambda: read(text, types=(GRPOConfig,)), "c.yaml: ")


def test_help_shows_our_settings_first_and_theirs_on_request(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as leaving:
            parse([Arguments, Plain], ["--name", "a", flag], "limner test")
        assert leaving.value.code == 0
        said.append(capsys.readouterr().out)
    short, whole = said
    assert short.startswith("usage: limner test [--config NAME]") and "settings of transformers.Training" in short
    rows = " ".join(short.split())
    for row in ("--mode {on,no} (default: on)", "--sizes VALUE 100 % of them.", "--pace VALUE (default: 1.0)"):
        assert row in rows
    assert "--rewards.image VALUE (default: 3.0)" in rows, "the section's default, not its class's"
    assert "--num_train_epochs" not in short
    assert "--num_train_epochs" in whole and whole.index("--rewards.image") < whole.index("--num_train_epochs")


def test_an_impossible_value_is_blamed_on_the_flag_that_gave_it(read):
    _one_line(lambda: read("name: a\nsteps: -1\n"), "c.yaml: steps must not be negative")
    _one_line(lambda: read("name: a\n", "--steps", "-1"), "--steps: steps must not be negative")


def test_resolved_configuration_reads_back(read, tmp_path):
    text = f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\nlr_scheduler_type: cosine\nname: a\nmode: no\n"
    first = read(text, "--rewards.text", "0.5", "--hub_token", "secret", types=(GRPOConfig, Plain))
    save_resolved(saved := tmp_path / "run" / "resolved.yaml", *first)
    assert "secret" not in saved.read_text() and [path.name for path in saved.parent.iterdir()] == ["resolved.yaml"]
    again = parse([GRPOConfig, Plain], ["--config", str(saved)])
    assert again[1] == first[1] and again[0].lr_scheduler_type == "cosine"
    assert again[0].steps_per_generation == first[0].steps_per_generation
    save_resolved(twice := tmp_path / "twice.yaml", *again)
    assert read_yaml(twice) == read_yaml(saved)


def test_secrets_are_left_out_of_what_is_saved_and_named(tmp_path):
    """At any depth, so that a folder of a run can be given away; `--config` reads the rest."""
    body = {"headers": {"Authorization": "Bearer x", "accept": "a"}, "max_tokens": 5, "parts": [{"api_key": "x"}]}
    endpoint = EndpointConfig(extra_body=body, api_key_env="MY_KEY")
    save_resolved(path := tmp_path / "r.yaml", ChatConfig(endpoint))
    text = path.read_text()
    assert "Bearer" not in text and "endpoint.extra_body.headers.Authorization" in text.splitlines()[1]
    assert "endpoint.extra_body.parts.0.api_key" in text.splitlines()[1]
    (again,) = parse([ChatConfig], ["--config", str(path)])
    assert again.endpoint is not None and again.endpoint.api_key_env == "MY_KEY"
    assert again.endpoint.extra_body == {"headers": {"accept": "a"}, "max_tokens": 5, "parts": [{}]}
    save_resolved(path, again)
    assert "not saved" not in path.read_text()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    save_resolved(path := tmp_path / "r.yaml", Judge("old"))
    monkeypatch.setattr(yaml, "safe_dump", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_resolved(path, Judge("new"))
    assert read_yaml(path) == {"model": "old", "retries": 2} and list(tmp_path.iterdir()) == [path]


def test_find_config(tmp_path, monkeypatch):
    (tmp_path / "warmup").mkdir()
    packaged = tmp_path / "warmup" / "tiny.yaml"
    packaged.write_text("a: 1\n")
    monkeypatch.setattr(configs, "_packaged_root", lambda: tmp_path)
    assert packaged_names() == ["warmup/tiny"]
    assert find_config("warmup/tiny") == find_config("warmup/tiny.yaml") == find_config(str(packaged)) == packaged
    _one_line(lambda: find_config("warmup/tny"), "near names: warmup/tiny")
    _one_line(lambda: find_config("../secret"), "packaged: warmup/tiny")
    (other := tmp_path / "notes.txt").touch()
    _one_line(lambda: find_config(str(other)), "not a YAML file")
    (tmp_path / "blue.yaml").write_text("{}")
    _one_line(lambda: find_config(str(tmp_path / "blue.yml")), f"did you mean {tmp_path / 'blue.yaml'}?")


def test_build_standing_alone():
    assert build(Rewards, {"judge": {"retries": 3}}, "here").judge.retries == 3
    _one_line(lambda: build(Rewards, {"judge": {"retry": 3}}, "here"), "here: judge.retry: unknown key")
    assert build(Source, {"path": "p"}, "here", Source("q", 2.0)) == Source("p", 2.0)


def test_merge_keys_are_read(tmp_path: Path):
    (path := tmp_path / "m.yaml").write_text("base: &base {a: 1}\nmore:\n  <<: *base\n  b: 1e-6\n")
    assert read_yaml(path)["more"] == {"a": 1, "b": 1e-6}


def _one_line(action, message: str) -> None:
    with pytest.raises(InputError) as caught:
        action()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_a_machine_without_a_gpu_is_to_be_told_is_said(tmp_path):
    with pytest.raises(InputError, match="--use_cpu true --bf16 false"):
        parse((TrainingArguments,), ["--output_dir", str(tmp_path), "--bf16", "true"])
