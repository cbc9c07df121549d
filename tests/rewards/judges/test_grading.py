"""A judge's templates, the strict reading of its scores, and its reward over real HTTP."""

import re

import pytest
from PIL import Image

from limner.configs import build
from limner.configs.errors import InputError
from limner.models.chat.endpoint import Endpoint, EndpointConfig
from limner.models.chat.requests import Failure, Reply
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.rewards.base import FAILED, Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.rewards.guard import GuardedReward
from limner.rewards.judges.grading import (
    JudgeFailed,
    JudgeReward,
    Template,
    load_template,
    packaged_templates,
    questions,
    read_verdict,
)
from limner.worlds.picture_stories.rewards import OwnSentenceReward
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, read_pictures, read_sentence

from ...scripted_server import BROKEN, Fault, ScriptedServer, completion, images, texts

PLAN = SCENES[5], SCENES[100]
PROMPT = InterleavedDocument((TextSegment("Illustrate."),), meta={"outline": [scene.words for scene in PLAN]})
NO_WISH = InterleavedDocument((TextSegment("Illustrate."),))
SHOWN = ImageSegment(draw_scene(PLAN[0]), True, "generated")
OTHER = ImageSegment(draw_scene(PLAN[1]), True, "generated")


def answer(*segments, prompt=PROMPT) -> Completion:
    given = (TextSegment(segment, True) if isinstance(segment, str) else segment for segment in segments)
    return Completion(prompt, InterleavedDocument(tuple(given)))


RIGHT = answer(PLAN[0].sentence, SHOWN, PLAN[1].sentence, OTHER)
SWAPPED = answer(PLAN[0].sentence, OTHER, PLAN[1].sentence, SHOWN)
TEXT_ONLY = answer("A story without a picture.")


def verifier(body) -> str:
    """The exact verifier of the embedded world as a judge of pictures against their texts."""
    sentence = re.search(r"The text:\n<<<\n(.*?)\n>>>", texts(body), re.DOTALL)
    said, shown = read_sentence(sentence[1]), read_pictures(images(body))[-1]
    return f"It shows {shown}.\n<score>{10 * said.matches(shown):g}</score>"


def endpoint(server: ScriptedServer, **others) -> Endpoint:
    return Endpoint(EndpointConfig(server.url, "scripted", retries=0, **others))


VERDICTS = {
    # a reply: (score, failure)
    "<score>7</score>": (7, ""),
    "Both show a cat.\n<score> 7.5 </score>\nI hope this helps!": (7.5, ""),
    "```xml\n<score>**8**</score>\n```": (8, ""),
    "<score>10/10</score>": (10, ""),
    "First <score>3</score>, so finally <score>3</score>": (3, ""),
    "<think>Perhaps <score>2</score>?</think><score>0</score>": (0, ""),
    "<score>3</score> or rather <score>8</score>": (None, "several scores"),
    "<score>11</score>": (None, "out of range"),
    "<score>-1</score>": (None, "out of range"),
    "<score>4/5</score>": (None, "out of range"),
    "<score>8-9</score>": (None, "no number"),
    "<score>nan</score>": (None, "no number"),
    "<score>null</score>": (None, "no number"),
    "<score></score>": (None, "no number"),
    "The score is 7 of 10.": (None, "no score"),
    '{"score": 7}': (None, "no score"),
    "<score>7": (None, "no score"),
    "I'm sorry, but I can't grade this.": (None, "refused"),
    "I cannot assist with that request.": (None, "refused"),
    "": (None, "empty"),
    " \n": (None, "empty"),
    "<think>Hm.</think>\n": (None, "empty"),
}


@pytest.mark.parametrize("text", VERDICTS)
def test_scores_are_read_strictly(text):
    verdict = read_verdict(Reply(text), load_template("helpfulness"))
    assert (verdict.score, verdict.failure) == VERDICTS[text] and verdict.words == text


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (Reply("<score>7</score>", "length"), "truncated"),
        (Reply("I will not say.", "refusal"), "refused"),
        (Reply("<score>7</score>", "content_filter"), "refused"),
        (Failure("timeout", "no answer within 1 s"), "timeout"),
    ],
)
def test_a_reply_that_was_cut_or_withheld_has_no_score(reply, failure):
    assert read_verdict(reply, load_template("helpfulness")).failure == failure


@pytest.mark.parametrize("name", packaged_templates())
def test_packaged_templates_ask_about_what_they_should(name):
    template = load_template(name)
    asked = questions(template, RIGHT)
    expected = {"document": [None], "text": [0, 2], "image": [1, 3], "image_pair": [3]}[template.unit]
    assert [question.segment for question in asked] == expected
    assert re.fullmatch(r"[a-z_]+\.v\d+", name) and template.label == name.partition(".")[0]
    for question in asked:
        words = question.request.content.text
        assert "<score>6</score>" in words and not re.search(r"\{\w+\}", words)
        assert question.request.template == f"{name}@{template.sha256[:16]}"


def test_a_picture_is_asked_about_with_its_own_text():
    def asked(*segments, prompt=PROMPT):
        template = Template("image", (0, 1), "T[{text}] P[{image}]")
        found = questions(template, answer(*segments, prompt=prompt))
        assert all(len(question.request.content.images) == 1 for question in found)
        return [(question.segment, re.search(r"T\[(.*?)\]", question.request.content.text)[1]) for question in found]

    assert asked("One.", SHOWN, OTHER, "Two.", SHOWN) == [(1, "One."), (2, "One."), (4, "Two.")]
    assert asked(SHOWN, " ", "After.") == [(0, "After.")]
    assert asked(SHOWN) == [(0, "Illustrate.")]
    assert asked(SHOWN, prompt=InterleavedDocument(())) == [(0, "(nothing)")]
    assert asked("A literal {image} and {prompt}.", SHOWN) == [(1, "A literal {image} and {prompt}.")]


def test_the_first_picture_is_held_against_the_request_s():
    template = load_template("image_consistency")
    assert questions(template, answer("One.", SHOWN)) == []
    prompt = InterleavedDocument((ImageSegment(Image.new("RGB", (9, 9))), TextSegment("Go on.")))
    (asked,) = questions(template, answer("One.", SHOWN, prompt=prompt))
    assert [image.pixels().size for image in asked.request.content.images] == [(9, 9), (32, 32)]


def test_the_verifier_as_judge_scores_as_the_exact_reward():
    direct = OwnSentenceReward()([RIGHT, SWAPPED])
    with ScriptedServer(verifier) as server, endpoint(server) as model:
        reward = JudgeReward(load_template("image_text_alignment"), model)
        judged = reward([RIGHT, SWAPPED])
    assert judged.segments == direct.segments and judged.outcome == direct.outcome
    assert judged.outcome[0] == 1 and judged.outcome[1] < 1 and judged.failed == {}
    manifest = reward.manifest()
    assert manifest["template"]["name"] == "image_text_alignment.v1" and len(manifest["template"]["sha256"]) == 64
    assert manifest["judge"]["model"] == "scripted" and reward.verdicts == {"scored": 4}


@pytest.mark.parametrize(("wanted", "before", "expected"), [(3, 0, 0.25), (2, 0, 0.5), (1, 0, 0.5), (3, 1, 1 / 3)])
def test_pictures_that_the_prompt_wants_and_the_answer_lacks_count_as_zero(wanted, before, expected):
    """Two pictures at 5 of 10: their one pair, or two with a picture before them, of those that were due."""
    given = (*[SHOWN] * before, TextSegment("Illustrate."))
    prompt = InterleavedDocument(given, meta={"structure": "TI" * wanted})
    with ScriptedServer(lambda body: "<score>5</score>") as server, endpoint(server) as model:
        row = answer("One.", SHOWN, "Two.", OTHER, prompt=prompt)
        assert JudgeReward(load_template("image_consistency"), model)([row]).outcome == [pytest.approx(expected)]
        outcome = JudgeReward(load_template("image_text_alignment"), model)([row]).outcome
    assert outcome == [pytest.approx(0.5 * min(1, 2 / wanted))]


def test_what_has_nothing_to_judge_is_not_asked_about():
    with ScriptedServer(lambda body: "<score>5</score>") as server, endpoint(server) as model:
        pictures = JudgeReward(load_template("image_text_alignment"), model)([TEXT_ONLY, answer()])
        pairs = JudgeReward(load_template("image_consistency"), model)(
            [TEXT_ONLY, answer("One.", SHOWN), answer("One.", SHOWN, prompt=NO_WISH)]
        )
        assert not server.bodies
        whole = JudgeReward(load_template("helpfulness"), model)([TEXT_ONLY])
    assert pictures.outcome == [0.0, 0.0] and pictures.segments == [[None], []]
    assert pairs.outcome == [0.0, 0.0, None]  # the prompt wants two pictures, or does not say
    assert pairs.segments == [[None], [None, None], [None, None]]
    assert whole.outcome == [0.5] and whole.segments == [[None]]


def test_failures_are_missing_scores_that_the_guard_counts():
    replies = iter(["<score>10</score>", "no idea", BROKEN, "<score>5</score>", BROKEN, BROKEN])

    with ScriptedServer(lambda body: next(replies)) as server, endpoint(server, concurrency=1) as model:
        reward = JudgeReward(load_template("image_text_alignment"), model)
        guard = GuardedReward(reward)
        output = guard([RIGHT, SWAPPED, answer("One.", SHOWN, "Two.", OTHER)])
    assert output.segments == [
        [None, 1.0, None, FAILED],
        [None, FAILED, None, 0.5],
        [None, FAILED, None, FAILED],
    ]
    assert output.outcome == [1.0, 0.5, FAILED]  # never pulled towards zero
    assert output.failed == {"no score": 1, "server error": 3}
    assert guard.metrics()["reward_failures/judge_image_text_alignment/scores"] == 4
    assert "1 no score, 3 server error" in guard.last_reason and reward.verdicts["server error"] == 3


def test_a_judge_that_only_fails_is_a_failed_call():
    with ScriptedServer(lambda body: Fault(400)) as server, endpoint(server) as model:
        reward = JudgeReward(load_template("helpfulness"), model)
        with pytest.raises(JudgeFailed, match="all 2 questions failed: 2 rejected; last: HTTP 400"):
            reward([RIGHT, SWAPPED])
        guard = GuardedReward(reward, calls=2)
        assert guard([RIGHT]).outcome == [FAILED] and guard.failures == {"raised JudgeFailed": 1}
        with pytest.raises(InputError, match="'judge_helpfulness' failed 2 calls in a row.*HTTP 400"):
            guard([RIGHT])


def test_replies_that_hold_no_score_are_cached_too(tmp_path):
    """A judge that answers nonsense at temperature 0 answers it again: asking twice would only cost."""
    cache = str(tmp_path / "replies.sqlite")
    with ScriptedServer(lambda body: completion("7 out of", finish="length")) as server:
        for _ in range(2):
            with endpoint(server, cache=cache) as model, pytest.raises(JudgeFailed, match="1 truncated"):
                JudgeReward(load_template("helpfulness"), model)([RIGHT])
        assert len(server.bodies) == 1


def test_yaml_weighs_judges_beside_exact_rewards(tmp_path):
    mine = tmp_path / "brief.yaml"
    mine.write_text("unit: document\nscale: [1, 5]\nscore: 'Grade: (\\S+)'\nprompt: 'Is this brief? {answer}'\n")

    def script(body):
        return "Grade: 2" if "brief" in texts(body) else verifier(body)

    with ScriptedServer(script) as server:
        weights = {"image_text_alignment": 2, str(mine): 1, "helpfulness": 0}
        judges = {f"judge/{name}": {"weight": weight, "endpoint": "mine"} for name, weight in weights.items()}
        section = {"rewards": {"format": 1, **judges}}
        section["endpoints"] = {"mine": {"base_url": server.url, "model": "scripted"}}
        reward = build_reward(build(RewardSettings, section, "my.yaml"))
        output = reward([RIGHT, SWAPPED])
        reward.guards[1].reward.score.endpoint.close()
    parts = {"format": 1.0, "judge_image_text_alignment": 1.0, "judge_brief": 0.25}
    assert {name: scores[0] for name, scores in output.breakdown.items()} == parts
    assert output.outcome[0] == pytest.approx((1 + 2 * 1 + 0.25) / 4)
    assert output.segments[0] == [None, 1.0, None, 1.0]
    assert len(server.bodies) == 4 + 2


def test_without_a_judge_nothing_changes():
    assert [part.name for part, _ in build_reward(RewardSettings()).parts] == ["format"]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({"judge/helpfulness": 1}, "rewards.judge/helpfulness.endpoint: .*there are mine"),
        ({"judge/helpfulness": 0}, "give at least one reward with a positive weight"),
        ({"judge/helpfullness": {"endpoint": "mine"}}, "'helpfullness'.*there are helpfulness.v1"),
        (
            {"judge/helpfulness": {"endpoint": "mine"}, "judge/helpfulness.v1": {"endpoint": "mine"}},
            "two parts are called judge_helpfulness; leave one out, or rename",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(rewards, message):
    section = {"rewards": rewards, "endpoints": {"mine": {"base_url": "http://localhost:1", "model": "m"}}}
    with pytest.raises(InputError, match=message):
        build_reward(build(RewardSettings, section, "my.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unit: document\nscale: [0, 10]\nprompt: 'Good? {image}'", "no place {image} for unit document"),
        ("unit: image\nscale: [0, 10]\nprompt: 'Good? {text}'", "put {image}"),
        ("unit: text\nscale: [10, 0]\nprompt: '{text}'", "scale"),
        ("unit: text\nscale: [0, 10]\nprompt: '{text}'\nscore: '\\d'", "0 groups"),
        ("unit: text\nscale: [0, 10]\nprompt: '{text}'\nabsent: 2", "absent"),
        ("unit: page\nscale: [0, 10]\nprompt: '{text}'", "unit: expected one of"),
        ("unit: text\nscale: [0, 10]\nprompt: '{text}'\nmodel: x", "model: unknown key"),
    ],
)
def test_a_template_with_a_fault_is_named(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"{path}.*{message}"):
        load_template(str(path))
