"""Questions about pictures: a scripted writer and viewer that know the embedded world score as its exact verifier."""

import re
from dataclasses import fields

import pytest

from limner.configs import build
from limner.configs.errors import InputError
from limner.models.chat.endpoint import Endpoint, EndpointConfig
from limner.models.chat.requests import Failure, Reply
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.forms import AdaptedReward
from limner.rewards.guard import GuardedReward
from limner.rewards.judges.grading import JudgeFailed
from limner.rewards.judges.questions import (
    MOST,
    Question,
    QuestionsReward,
    load_template,
    read_answer,
    read_questions,
)
from limner.worlds.picture_stories.rewards import PictureReward
from limner.worlds.picture_stories.scenes import (
    ATTRIBUTES,
    SCENES,
    draw_scene,
    parse_scene,
    read_pictures,
    story_prompt,
)

from ...scripted_server import BROKEN, ScriptedServer, completion, images, texts

PLAN = SCENES[5], SCENES[100]
PROMPT = story_prompt(PLAN, "p1")


def answer(*scenes, prompt=PROMPT) -> Completion:
    segments = [
        part
        for scene in scenes
        for part in (TextSegment(scene.sentence, True), ImageSegment(draw_scene(scene), True, "generated"))
    ]
    return Completion(prompt, InterleavedDocument(tuple(segments)))


def ask(picture, text) -> str:
    return f'<question picture="{picture}">{text}</question>'


def knows_the_world(body):
    """Writes a question for each attribute of each scene; answers one by looking at the picture."""
    said = texts(body)
    if "The question: " not in said:
        scenes = map(parse_scene, re.search(r"Illustrate: (.*)\.\n>>>", said)[1].split("; "))
        lines = [
            ask(number, f"Is its {attribute} {getattr(scene, attribute)}?")
            for number, scene in enumerate(scenes, 1)
            for attribute in ATTRIBUTES
        ]
        return "I check each attribute.\n" + "\n".join(lines)
    attribute, value = re.search(r"The question: Is its (\w+) (.*)\?", said).groups()
    (shown,) = read_pictures(images(body))
    return f"It shows {shown}.\n<answer>{'yes' if getattr(shown, attribute) == value else 'no'}</answer>"


def reward_of(server, **others):
    return QuestionsReward(Endpoint(EndpointConfig(server.url, "scripted", retries=0, **others)))


def test_questions_about_every_attribute_score_as_the_exact_verifier():
    wrong = type(PLAN[1])(**{f.name: getattr(PLAN[0 if f.name == "colour" else 1], f.name) for f in fields(PLAN[1])})
    rows = [answer(*PLAN), answer(PLAN[0], wrong), answer(PLAN[1], PLAN[0]), answer(PLAN[0])]
    with ScriptedServer(knows_the_world) as server:
        output = reward_of(server)(rows)
        assert sum("The question: " not in texts(body) for body in server.bodies) == 1  # one prompt, asked once
        assert all(len(images(body)) <= 1 for body in server.bodies)
    exact = PictureReward()(rows)
    assert output.segments == exact.segments and output.outcome == exact.outcome
    assert output.outcome[0] == 1 and output.outcome[3] == 0.5 and not output.failed


def test_written_questions_come_from_the_cache(tmp_path):
    cache = str(tmp_path / "replies.sqlite")
    with ScriptedServer(knows_the_world) as server:
        first = reward_of(server, cache=cache)([answer(*PLAN)])
        asked = len(server.bodies)
        again = reward_of(server, cache=cache)([answer(*PLAN), answer(PLAN[0], SCENES[7])])
        assert asked == 1 + 8 and len(server.bodies) == asked + 4
    assert again.outcome[0] == first.outcome[0] == 1


def test_each_picture_and_those_that_are_missing():
    """Two questions about each picture, one about the third; the viewer says yes to red things only."""
    written = "\n".join([ask("each", "Is it red?"), ask("each", "Is it new?"), ask(3, "Is it big?")])

    def script(body):
        said = texts(body)
        return f"<answer>{'yes' if 'red' in said else 'no'}</answer>" if "The question: " in said else written

    free = InterleavedDocument((TextSegment("Draw."),))
    outlined = story_prompt(SCENES[:4])
    none = InterleavedDocument((TextSegment("Explain."),), meta={"structure": "T"})
    rows = [
        answer(SCENES[0], SCENES[1], SCENES[2], prompt=free),
        answer(SCENES[0], prompt=free),
        answer(SCENES[0], prompt=outlined),
        answer(prompt=free),
        answer(prompt=none),
    ]
    with ScriptedServer(script) as server:
        output = reward_of(server)(rows)
    assert output.segments[0] == [None, 1 / 2, None, 1 / 2, None, pytest.approx(1 / 3)]
    # Yes, over given and missing: 3 of 7; 1 of 2 and the third picture's; 1 of 2, 3 x 2 and one; none of 2 and one.
    assert output.outcome == [pytest.approx(x) for x in (3 / 7, 1 / 3, 1 / 9, 0.0, 0.0)]
    with ScriptedServer(lambda body: "<none/>") as server:
        assert reward_of(server)(rows).outcome == [None] * 5


def test_failures_are_counted_and_count_for_nothing():
    other = story_prompt(SCENES[20:22], "p2")
    replies = iter([ask(1, "Red?") + ask(1, "Big?"), "no idea", "<answer>yes</answer>", BROKEN])
    with ScriptedServer(lambda body: next(replies)) as server:
        guard = GuardedReward(AdaptedReward("questions", reward_of(server, concurrency=1)))
        output = guard([answer(PLAN[0]), answer(PLAN[0], prompt=other)])
    assert output.segments == [[None, 1.0], [None, FAILED]] and output.outcome == [1.0, FAILED]
    assert output.failed == {"questions: none written": 1, "server error": 1}
    assert guard.metrics()["reward_failures/questions/scores"] == 2
    with (
        ScriptedServer(lambda body: "no idea") as server,
        pytest.raises(JudgeFailed, match="2 questions: none written"),
    ):
        reward_of(server)([answer(PLAN[0])] * 2)
    with (
        ScriptedServer(lambda body: ask(1, "Red?")) as server,
        pytest.raises(JudgeFailed, match="all 1 .* 1 no answer"),
    ):
        reward_of(server)([answer(PLAN[0])])


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (Reply(ask(2, " Red? ") + ask("each", "Wet?")), [Question(1, "Red?"), Question(None, "Wet?")]),
        (Reply("<think>" + ask(1, "Hm?") + "</think><none/>"), []),
        (Reply("Is it red?"), "none written"),
        (Reply(ask(0, "Is it red?")), "none written"),
        (Reply(ask(1, " ")), "an empty one"),
        (Reply(ask(1, "Red?") * (MOST + 1)), f"more than {MOST}"),
        (Reply(ask(1, "Red?"), "length"), "truncated"),
        (Reply("I'm sorry, but I can't."), "refused"),
        (Failure("timeout", "no answer within 1 s"), "timeout"),
    ],
)
def test_questions_are_read_strictly(reply, read):
    assert read_questions(reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        (Reply("It is red.\n<answer>yes</answer>"), True),
        (Reply("<answer> No </answer> so <answer>no</answer>"), False),
        (Reply("<answer>yes</answer><answer>no</answer>"), "several answers"),
        (Reply("yes"), "no answer"),
        (Reply("<answer>maybe</answer>"), "no answer"),
        (Reply("I cannot assist with that."), "refused"),
        (Reply("<answer>yes</answer>", "content_filter"), "refused"),
        (Reply("<answer>yes</answer>", "length"), "truncated"),
    ],
)
def test_answers_are_read_strictly(reply, read):
    assert read_answer(reply) == read


def test_settings_and_templates(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("write: 'W {prompt}'\nask: 'A {question} {image}'\n")
    with ScriptedServer(lambda body: completion(ask(1, "Red?"))) as server:
        model = {"base_url": server.url, "model": "scripted"}
        part = {"viewer": "eye", "writer": "hand", "weight": 2, "template": str(mine)}
        section = {"rewards": {"format": 1, "questions": part}, "endpoints": {"eye": model, "hand": model}}
        reward = build_reward(build(RewardSettings, section, "my.yaml"))
        assert [weight for _, weight in reward.parts] == [1, 2]
        questions = dict((guard.name, guard.reward.score) for guard in reward.guards)["questions"]
        assert questions.manifest()["template"].startswith("mine@") and questions.writer is not questions.viewer
        section["rewards"] = {"questions": {"viewer": "eye"}}
        alone = build_reward(build(RewardSettings, section, "my.yaml")).guards[0].reward.score.manifest()
        assert alone["writer"] == alone["viewer"] and alone["template"].startswith("pictures.v1@")
    assert load_template("pictures.v1").identity.startswith("pictures.v1@")
    with pytest.raises(InputError, match="rewards.questions.viewer: missing; name one of `endpoints: "):
        build_reward(RewardSettings({"questions": 1}))
    with pytest.raises(InputError, match="'pictures.v0': neither .*: pictures.v1"):
        load_template("pictures.v0")
    for wrong in ("write: 'W'\nask: 'A {question} {image}'\n", "write: 'W {prompt}'\nask: 'A {question}'\n"):
        mine.write_text(wrong)
        with pytest.raises(InputError, match="mine.yaml"):
            load_template(str(mine))
