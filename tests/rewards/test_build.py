"""From settings to the hybrid reward: parts by name, weights and options, what is shared, one's own beside ours."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest

from limner.configs import build, parse, save_resolved
from limner.configs.errors import InputError
from limner.models.chat import choice
from limner.models.chat.choice import SharedEndpoint
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.rewards.base import Completion, RewardOutput
from limner.rewards.build import RewardSettings, build_reward, reward_parts
from limner.rewards.encoders import pretrained
from limner.rewards.encoders.pretrained import EncoderConfig
from limner.worlds.picture_stories.scenes import SCENES, story

STORY = story(SCENES[:2])
ROWS = [
    Completion(STORY.prompt, STORY.completion),
    Completion(STORY.prompt, InterleavedDocument((TextSegment("Three short words.", True),)), ended=False),
]
CRITIC = SharedEndpoint("http://localhost:1/v1", "critic", retries=0)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch) -> Path:
    """A file of one's own in the folder where the command runs."""
    path = tmp_path / "mine.py"
    shutil.copy(Path(__file__).with_name("my_rewards.py"), path)
    monkeypatch.chdir(tmp_path)
    return path


def parts(rewards, **others):
    return reward_parts(RewardSettings(rewards, **others))


def one(name, value: object = 1.0, **others) -> RewardOutput:
    ((part, _),) = parts({name: value}, **others)
    return part(ROWS)


def refused(rewards, **others) -> str:
    with pytest.raises(InputError) as caught:
        build_reward(RewardSettings(rewards, **others))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- names and weights ----


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rewards.judge/text_relevance.v1", "2"], {"judge/text_relevance.v1": 2}),
        (["--rewards.judge/helpfulness.v1.weight", "2"], {"judge/helpfulness.v1": {"weight": 2}}),
        (["--rewards.judge/helpfulness.weight", "2"], {"judge/helpfulness": {"weight": 2}}),
        (["--rewards.judge/mine.v2.yaml.weight", "2"], {"judge/mine.v2.yaml": {"weight": 2}}),
        (["--rewards.judge/mine.yaml=2"], {"judge/mine.yaml": 2}),
        (["--rewards.mine.py:Brevity.words", "3"], {"mine.py:Brevity": {"words": 3}}),
    ],
)
def test_a_flag_names_a_versioned_template(flags, expected):
    settings, *_ = parse((RewardSettings,), flags)
    assert settings.rewards == {"format": 1.0, **expected}


def test_without_settings_format_is_the_reward():
    reward = build_reward(RewardSettings())
    assert [(guard.name, weight) for guard, weight in reward.parts] == [("format", 1.0)]
    assert reward(ROWS).outcome == [1.0, 0.0]


def test_parts_keep_their_order_and_weights():
    found = parts({"structure": 2, "mine.py:plain": 0.5, "format": {"weight": 3}, "picture_stories/text_plan": {}})
    assert [(part.name, weight) for part, weight in found] == [
        ("structure", 2.0),
        ("plain", 0.5),
        ("format", 3.0),
        ("picture_stories_text_plan", 1.0),
    ]
    assert all(type(weight) is float for _, weight in found)


def test_ones_own_beside_ours_is_weighed_like_them():
    output = build_reward(RewardSettings({"format": 1, "mine.py:plain": 1, "mine.py:Steps": {"weight": 2}}))(ROWS)
    assert output.outcome == pytest.approx([(1 + 1 + 2 * 1.0) / 4, (0 + 0 + 2 * 0.25) / 4])
    assert output.segments == [[0.25] * 4, [0.25]]
    assert output.breakdown == {"format": [1, 0], "plain": [1, 0], "Steps": [1.0, 0.25]}


def test_weight_0_leaves_a_part_out_before_it_is_built(mine, monkeypatch):
    monkeypatch.setattr(pretrained, "load_model", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(choice, "Endpoint", lambda *_: pytest.fail("connected"))
    rewards = {
        "format": 1,
        "image/clipscore": 0,
        "text/embedding": {"weight": 0, "model": "nowhere"},
        "judge/helpfulness": {"weight": 0.0, "endpoint": "critic"},
        "questions": 0,
        "mine.py:Brevity": {"weight": 0, "words": "many"},
    }
    assert [part.name for part, _ in parts(rewards, endpoints={"critic": CRITIC})] == ["format"]
    assert "no reward is called 'formt'" in refused({"formt": 0, "format": 1}), "its name is read all the same"
    assert "positive weight" in refused({"format": 0}) and "positive weight" in refused({})


@pytest.mark.parametrize(
    "weight", [-1, -0.5, float("nan"), float("inf"), float("-inf"), True, False, "1", "", None, [1], (1,), [], b"1"]
)
def test_what_is_no_weight_is_refused(weight):
    for value in (weight, {"weight": weight}):
        said = refused({"format": value})
        assert said == (
            f"rewards.format: {weight!r} is no weight; give a number of at least 0 or {{weight: 1, OPTION: ..}}, "
            "or delete it"
        )


def test_two_parts_of_one_name(mine):
    other = mine.with_name("other.py")
    other.write_text("def plain(completions): return []\n")
    said = refused({"mine.py:plain": 1, f"{other}:plain": 1})
    assert said == "rewards: two parts are called plain; leave one out, or rename what a file defines"
    assert [part.name for part, _ in parts({"mine.py:plain": 1, f"{other}:plain": 0})] == ["plain"]
    third = mine.with_name("third.py")
    third.write_text("class format:\n    def __call__(self, completions): return []\n")
    assert "two parts are called format" in refused({"format": 1, f"{third}:format": 1})


def test_a_class_that_takes_no_completions_is_refused_before_anything_is_made(mine):
    deaf = mine.with_name("deaf.py")
    deaf.write_text(
        "class Deaf:\n"
        "    def __init__(self): raise RuntimeError('made')\n"
        "    def __call__(self): return []\n"
        "class Asks(Deaf):\n"
        "    def __call__(self, completions, words): return []\n"
    )
    for name, words in (
        ("Deaf", "takes no completions; a reward is __call__(self, completions)"),
        ("Asks", "__call__ asks for 'words', which nothing gives; options belong to the constructor"),
    ):
        assert refused({"deaf.py:" + name: 1}) == f"rewards.deaf.py:{name}: {words}"


# ---- options ----


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        ({"format": {"patern": "x"}}, "rewards.format: patern: unknown key; did you mean pattern?"),
        ({"format": {"pattern": "x"}}, "rewards.format: pattern: expected one of alternating, think-vis, got 'x'"),
        ({"structure": {"least": 0}}, "rewards.structure: least: expected a number 1 to 1,000,000, got 0"),
        ({"structure": {"least": "two"}}, "rewards.structure: least: expected int, got 'two'"),
        ({"structure": {"least": 3, "most": 2}}, "rewards.structure: least: 3 to 2 steps; give 1 <= least <= most"),
        ({"picture_stories/text_plan": {"plan": 1}}, "rewards.picture_stories/text_plan: plan: unknown key; known: "),
        (
            {"judge/helpfulness": {"template": "x"}},
            "rewards.judge/helpfulness.template: stands in the name 'judge/help",
        ),
        ({"remote/flat": {"reward": "x"}}, "rewards.remote/flat.reward: stands in the name 'remote/flat' already"),
        (
            {"remote/flat": {"url": "http://x", "retries": -1}},
            "rewards.remote/flat: retries: expected a number 0 to 1,000,000, got -1",
        ),
        ({"text/bleu": 1}, "rewards.text/bleu: preset: 'bleu' is none of rouge_l, bertscore, "),
        ({"mine.py:brevity": {"word": 3}}, "rewards.mine.py:brevity: word: unknown key; did you mean words?"),
        ({"mine.py:brevity": {"words": 0}}, "rewards.mine.py:brevity: words: expected at least 1, got 0"),
        ({"mine.py:brevity": {"completions": 3}}, "rewards.mine.py:brevity: completions: unknown key; known: words"),
        ({"mine.py:Brevity": {"words": 1.5}}, "rewards.mine.py:Brevity: words: expected int, got 1.5"),
        ({"mine.py:Steps": {"earn": 1}}, "rewards.mine.py:Steps: earn: unknown key; did you mean earns?"),
        ({"mine.py:trl": {"outline": 1}}, "rewards.mine.py:trl: outline: unknown key; known: "),
        (
            {"mine.py:nothing": 1},
            "rewards.mine.py:nothing: takes no completions; a reward is a function of completions",
        ),
        ({"mine.py:Brevty": 1}, "rewards: mine.py: has no 'Brevty'; did you mean Brevity"),
        ({"nowhere.py:Brevity": 1}, "rewards: nowhere.py: no such file; name a Python file and what it defines"),
        ({"nowhere_at_all.rewards:Brevity": 1}, "rewards: nowhere_at_all.rewards: no such module is installed"),
        ({"brevity": 1}, "rewards: no reward is called 'brevity'; there are consistency/PRESET, format, "),
    ],
)
def test_a_fault_in_a_name_or_an_option_is_one_line(rewards, words):
    assert refused(rewards).startswith(words)


def test_options_of_ours():
    ((part, _),) = parts({"structure": {"weight": 2, "unit": "IT", "most": 3}})
    assert (part.score.unit, part.score.least, part.score.most) == ("IT", 1, 3)
    assert one("format", {"pattern": "think-vis"}).outcome == [0.0, 0.0]


# ---- one's own ----


def test_a_function():
    assert one("mine.py:plain") == RewardOutput([1.0, 0.0], [[None] * 4, [None]])


def test_a_function_with_an_option():
    spoken = len(STORY.completion.text.split())
    assert one("mine.py:brevity").outcome == pytest.approx([6 / spoken, 1.0])
    assert one("mine.py:brevity", {"weight": 2, "words": 1}).outcome == pytest.approx([1 / spoken, 1 / 3])


def test_a_class_with_options():
    assert one("mine.py:Brevity", {"words": 1}).outcome[1] == pytest.approx(1 / 3)
    assert one("mine.py:Brevity", {"words": 1, "share": "0.5"}).outcome[1] == pytest.approx(1 / 6)
    assert one("mine.py:Brevity").outcome[1] == 1.0


def test_a_dataclass_with_scores_of_segments():
    output = one("mine.py:Steps", {"earns": 0.125})
    assert output.segments == [[0.125] * 4, [0.125]] and output.breakdown == {"steps": [4, 1]}


def test_trls_form_and_an_async_function():
    assert one("mine.py:trl").outcome == [1.0, 1.0]
    assert one("mine.py:later").outcome == [0.5, 0.5]


def test_an_installed_module(tmp_path, monkeypatch, mine):
    (tmp_path / "own_rewards_b").mkdir()
    (tmp_path / "own_rewards_b" / "__init__.py").touch()
    (tmp_path / "own_rewards_b" / "short.py").write_text(mine.read_text())
    monkeypatch.syspath_prepend(tmp_path)
    assert one("own_rewards_b.short:Brevity", {"words": 1}).outcome[1] == pytest.approx(1 / 3)
    assert refused({"own_rewards_b.short:Brevity": {"word": 1}}).startswith(
        "rewards.own_rewards_b.short:Brevity: word:"
    )


def test_a_part_that_there_is_not_is_told_when_settings_are_read():
    """Before any model is loaded."""
    with pytest.raises(InputError, match="^my.yaml: rewards: no reward is called 'formt'; did you mean format"):
        build(RewardSettings, {"rewards": {"formt": 1}}, "my.yaml")
    with pytest.raises(InputError, match="^my.yaml: rewards: mine.py: has no 'Brevty'"):
        build(RewardSettings, {"rewards": {"mine.py:Brevty": 1}}, "my.yaml")


# ---- callables of a program ----


def test_callables_beside_what_the_settings_name():
    python = {"ended": (lambda rows: [float(c.ended) for c in rows], 3), "off": (lambda rows: [0.0] * len(rows), 0)}
    reward = build_reward(RewardSettings({"format": 1}), python)
    assert [(guard.name, weight) for guard, weight in reward.parts] == [("format", 1.0), ("ended", 3.0)]
    assert reward(ROWS).outcome == [1.0, 0.0]
    assert [guard.name for guard in build_reward(RewardSettings({}), python).guards] == ["ended"]


class Scorer:
    def __call__(self, completions):
        return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ({"mine": (Scorer, 1)}, "reward 'mine': give a function of completions, or an object with __call__"),
        ({"mine": (0.5, 1)}, "reward 'mine': give a function of completions, or an object with __call__"),
        ({"mine": (lambda: [], 1)}, "reward 'mine': takes no completions; a reward is a function of completions"),
        ({"mine": (Scorer(), -1)}, "reward 'mine': -1 is no weight"),
        ({"mine": (Scorer(), True)}, "reward 'mine': True is no weight"),
        ({"format": (Scorer(), 1)}, "two parts are called format"),
    ],
)
def test_callables_that_cannot_score(python, words):
    with pytest.raises(InputError, match=words):
        build_reward(RewardSettings(), python)


# ---- from files and flags ----


def test_a_whole_configuration(tmp_path, mine):
    """As the module's docstring has it."""
    text = """
    endpoints: {critic: {base_url: http://localhost:8000/v1, model: NAME, cache: critic.sqlite}}
    encoders: {default: {device: cpu, dtype: bfloat16}}
    reward_guard: {timeout: 5, patience: 20}
    rewards:
      format: 1
      judge/text_relevance: {weight: 1, endpoint: critic}
      mine.py:Brevity: {weight: 0.5, words: 80}
    """
    (tmp_path / "my.yaml").write_text(textwrap.dedent(text))
    (settings,) = parse((RewardSettings,), ["--config", "my.yaml"])
    reward = build_reward(settings)
    assert [(guard.name, weight) for guard, weight in reward.parts] == [
        ("format", 1.0),
        ("judge_text_relevance", 1.0),
        ("Brevity", 0.5),
    ]
    assert {(guard.timeout_s, guard.patience_s) for guard in reward.guards} == {(5.0, 20.0)}
    assert reward.guards[2].reward.score.words == 80
    reward.guards[1].reward.score.endpoint.close()
    save_resolved(tmp_path / "resolved.yaml", settings)
    (again,) = parse((RewardSettings,), ["--config", "resolved.yaml"])
    assert again == settings


@pytest.fixture
def given(tmp_path):
    """The rewards of a file, or of none, after flags."""

    def read(text: str | None, *flags: str) -> dict:
        config = []
        if text is not None:
            (tmp_path / "my.yaml").write_text(text)
            config = ["--config", "my.yaml"]
        (settings,) = parse((RewardSettings,), [*config, *flags])
        return settings.rewards

    return read


FILE = "rewards: {format: 1, structure: {weight: 2, unit: IT}}"


@pytest.mark.parametrize(
    ("text", "flags", "expected"),
    [
        (None, ["--rewards", "{mine.py:plain: 0.5}"], {"format": 1.0, "mine.py:plain": 0.5}),
        (None, ["--rewards={mine.py:plain: 0.5}"], {"format": 1.0, "mine.py:plain": 0.5}),
        (
            FILE,
            ["--rewards", "{mine.py:plain: 0.5}"],
            {"format": 1, "structure": {"weight": 2, "unit": "IT"}, "mine.py:plain": 0.5},
        ),
        (FILE, ["--rewards", "{format: 0, structure: 3}"], {"format": 0, "structure": 3}),
        ("reward_guard: {calls: 2}", ["--rewards", "{structure: 1}"], {"format": 1.0, "structure": 1}),
        (None, ["--rewards.format", "0"], {"format": 0}),
        (FILE, ["--rewards.format", "0"], {"format": 0, "structure": {"weight": 2, "unit": "IT"}}),
        (None, ["--rewards.structure", "2"], {"format": 1.0, "structure": 2}),
        (
            None,
            ["--rewards.structure", "{weight: 2, unit: IT}"],
            {"format": 1.0, "structure": {"weight": 2, "unit": "IT"}},
        ),
        (FILE, ["--rewards.structure.weight", "3"], {"format": 1, "structure": {"weight": 3, "unit": "IT"}}),
        (None, ["--rewards.structure.unit=IT"], {"format": 1.0, "structure": {"unit": "IT"}}),
        (None, ["--rewards.picture_stories/text_plan", "2"], {"format": 1.0, "picture_stories/text_plan": 2}),
        (None, ["--rewards.mine.py:plain", "0.5"], {"format": 1.0, "mine.py:plain": 0.5}),
        (None, ["--rewards.mine.py:brevity.words", "3"], {"format": 1.0, "mine.py:brevity": {"words": 3}}),
        (None, ["--rewards", "{structure: 1}", "--rewards.format", "0"], {"format": 0, "structure": 1}),
        ("rewards: {}", [], {}),
    ],
)
def test_flags_add_to_what_a_file_says(given, text, flags, expected):
    rewards = given(text, *flags)
    assert rewards == expected and json.dumps(rewards), "plain values, which are saved with the run"


def test_flags_are_weights_and_options_like_a_files(given):
    rewards = given(None, "--rewards.format", "0", "--rewards.structure.weight", "2", "--rewards.structure.unit", "IT")
    ((part, weight),) = parts(rewards)
    assert (part.name, weight, part.score.unit) == ("structure", 2.0, "IT")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rewards.format", "much"], "rewards.format: 'much' is no weight"),
        (["--rewards.formt", "1"], "no reward is called 'formt'; did you mean format"),
        (["--rewards", "{formt: 1}"], "no reward is called 'formt'; did you mean format"),
        (["--rewards", "3"], "--rewards: expected a mapping, got 3"),
        (["--rewards.format.pattern.more", "1"], "--rewards.format.pattern.more: rewards.format has no part pattern"),
        (["--reward_guard.patience", "0"], "patience: 0 seconds; a call may take 300"),
        (["--endpoints.critic.modle", "m"], "--endpoints.critic.modle: unknown key; did you mean model"),
    ],
)
def test_faults_in_flags_are_one_line(given, flags, words):
    with pytest.raises(InputError) as caught:
        given("rewards: {format: 1}", *flags)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_endpoints_and_encoders_by_flags(given, tmp_path):
    flags = ["--endpoints.critic.base_url", "http://localhost:1/v1", "--endpoints.critic.model", "m"]
    flags += [
        "--encoders",
        "{default: {dtype: bfloat16}, small: {batch_size: 1}}",
        "--endpoints.critic.concurrency",
        "2",
    ]
    (settings,) = parse((RewardSettings,), flags)
    assert settings.endpoints == {"critic": SharedEndpoint("http://localhost:1/v1", "m", concurrency=2)}
    assert settings.encoders == {"default": EncoderConfig(dtype="bfloat16"), "small": EncoderConfig(batch_size=1)}
