"""GRPO with a judge behind HTTP that knows the embedded world: the same rollouts earn the same rewards as from the
exact verifiers themselves, and the same parameters come out."""

import copy
import random
import re
from dataclasses import replace

import pytest
import torch

from limner.models.chat.choice import SharedEndpoint
from limner.models.documents.document import ImageSegment, InterleavedDocument, TextSegment
from limner.models.tokens.sequence import collate
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward
from limner.worlds.picture_stories.scenes import SCENES, draw_scene, parse_scene, read_pictures, read_sentence, story

from ..rewards.exact import STORIES
from ..scripted_server import ScriptedServer, parts
from .runs import PROMPTS, logs, parameters, settings, trained

PICTURE = "\0"
EXACT = RewardSettings({name: weight for name, weight in STORIES.items() if name != "format"})


@pytest.fixture(scope="module")
def writer(make_policy):
    """A policy that writes sentences of the world, right and wrong ones: a hundred steps on mixed-up stories."""
    policy, rng = make_policy(0), random.Random(0)
    documents = []
    for prompt in PROMPTS:
        for _ in range(6):
            said = story(tuple(rng.choice(SCENES[:16]) for _ in range(2)))
            documents.append(replace(prompt, segments=prompt.segments + said.completion.segments))
    batch = collate([[sequence] for sequence in policy.processor.encode_all(documents)], policy.vocabulary)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=1e-2)
    for _ in range(100):
        logp_BT, _ = policy.log_probs(policy.model, batch)
        loss = -logp_BT[batch.trainable_BT].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


class Drawn:
    """The tokenizer is untrained, so a picture's codes stand for a scene; keeps what the reward within has said."""

    name = "drawn"

    def __init__(self, reward):
        self.reward, self.outputs = reward, []

    def __call__(self, completions):
        drawn = [
            replace(c, answer=replace(c.answer, segments=tuple(map(self.draw, c.answer.segments)))) for c in completions
        ]
        self.outputs.append(self.reward(drawn))
        return self.outputs[-1]

    @staticmethod
    def draw(segment):
        if isinstance(segment, TextSegment):
            return segment
        return replace(segment, image=draw_scene(SCENES[int(segment.codes_N.sum()) % len(SCENES)]))


def received(body) -> tuple[str, list]:
    """What the judge was shown: the words, a placeholder for each picture; and the pictures."""
    seen = parts(body)
    return "".join(part if isinstance(part, str) else PICTURE for part in seen), [
        p for p in seen if not isinstance(p, str)
    ]


def outline_in(said):
    return [parse_scene(words) for words in re.search(r"Illustrate: (.*?)\.\n", said)[1].split("; ")]


def judge_segments(body) -> str:
    """For the packaged templates: a passage against the plan at its place, a picture against its sentence."""
    said, pictures = received(body)
    if "The passage to grade:" in said:
        before, passage = re.search(
            r"up to this passage:\n<<<\n(.*?)\n>>>.*to grade:\n<<<\n(.*?)\n>>>", said, re.S
        ).groups()
        place = sum(bool(text.strip()) for text in before.replace("(nothing)", "").split(PICTURE))
        plan = outline_in(said)
        score = plan[place].matches(read_sentence(passage)) if place < len(plan) else 0.0
    else:
        sentence = read_sentence(re.search(r"The text:\n<<<\n(.*?)\n>>>", said, re.S)[1])
        score = sentence.matches(read_pictures(pictures)[-1]) if sentence else 0.0
    return f"I compared them.\n<score>{10 * score:g}</score>"


def judge_documents(body) -> str:
    """For a template that shows all of an answer: the outcome of the exact rewards, by the same code."""
    said, pictures = received(body)
    shown = iter(pictures)
    segments = [
        ImageSegment(next(shown), True) if piece == PICTURE else TextSegment(piece, True)
        for piece in re.split(f"({PICTURE})", re.search(r"ANSWER\n(.*)\nEND", said, re.S)[1])
        if piece
    ]
    prompt = InterleavedDocument((), meta={"outline": [scene.words for scene in outline_in(said)]})
    output = build_reward(EXACT)([Completion(prompt, InterleavedDocument(tuple(segments)))])
    return f"<score>{output.outcome[0]!r}</score>"


@pytest.mark.parametrize("level", ["outcome", "process"])
def test_a_judge_that_knows_the_world_trains_as_the_exact_rewards(level, writer, tmp_path):
    whole = tmp_path / "whole.yaml"
    whole.write_text('unit: document\nscale: [0, 1]\nprompt: "REQUEST\\n{prompt}\\nANSWER\\n{answer}\\nEND"\n')
    if level == "outcome":
        exact, script, weights = EXACT, judge_documents, {str(whole): 1.0}
        algorithm = {"outcome_weight": 1.0, "process_weight": 0.0}
    else:
        exact = RewardSettings({"picture_stories/text_plan": 1, "picture_stories/image_sentence": 2})
        script, weights = judge_segments, {"text_relevance": 1.0, "image_text_alignment": 2.0}
        algorithm = {"outcome_weight": 0.0, "process_weight": 1.0}
    algorithm["max_images"] = 2

    def run(config, name):
        reward, policy = Drawn(build_reward(config)), copy.deepcopy(writer)
        args = settings(tmp_path / name, max_steps=2, max_completion_length=80)
        return reward.outputs, policy, trained(policy, args, reward, **algorithm)

    direct, policy, trainer = run(exact, "direct")
    with ScriptedServer(script) as server:
        parts = {f"judge/{name}": {"weight": weight, "endpoint": "mine"} for name, weight in weights.items()}
        judge = RewardSettings(parts, endpoints={"mine": SharedEndpoint(server.url, "scripted", retries=0)})
        judged, other, _ = run(judge, "judged")
        assert server.bodies
    if level == "outcome":
        assert [output.outcome for output in judged] == [output.outcome for output in direct]
        assert len({score for output in direct for score in output.outcome}) > 2
    else:
        assert [output.segments for output in judged] == [output.segments for output in direct]
        assert len({score for output in direct for row in output.segments for score in row}) > 2
    assert torch.equal(parameters(policy), parameters(other))
    assert not torch.equal(parameters(policy), parameters(writer)) and logs(trainer)[0]["grad_norm"] > 0
