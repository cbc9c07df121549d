"""What parts of a reward share: one client for all that name an endpoint, one model for all that name an encoder."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from limner.configs import build
from limner.configs.errors import InputError
from limner.models.chat import choice
from limner.models.chat.choice import SharedEndpoint
from limner.models.documents.document import InterleavedDocument, TextSegment
from limner.rewards.base import Completion
from limner.rewards.build import RewardSettings, build_reward, reward_parts
from limner.rewards.encoders import pretrained
from limner.rewards.encoders.pretrained import EncoderConfig

from . import tiny_models

ROWS = [Completion(InterleavedDocument((TextSegment("Draw."),)), InterleavedDocument((TextSegment("No.", True),)))]
CRITIC = SharedEndpoint("http://localhost:1/v1", "critic", retries=0)


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A file of one's own in the folder where the command runs."""
    shutil.copy(Path(__file__).with_name("my_rewards.py"), tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)


def parts(rewards, **others):
    return reward_parts(RewardSettings(rewards, **others))


def refused(rewards, **others) -> str:
    with pytest.raises(InputError) as caught:
        build_reward(RewardSettings(rewards, **others))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- endpoints ----


class Client:
    """A `ChatModel` that asks nobody."""

    def __init__(self, config):
        self.config, self.counts = config, Counter()

    def complete(self, requests):
        raise AssertionError

    def as_completed(self, requests):
        raise AssertionError

    def manifest(self):
        return {}

    def close(self):
        pass


def test_parts_that_name_an_endpoint_share_one_client(monkeypatch):
    made = []
    monkeypatch.setattr(choice, "Endpoint", lambda config: made.append(config) or Client(config))
    judges = {f"judge/{name}": {"endpoint": "critic"} for name in ("helpfulness", "text_relevance")}
    rewards = {**judges, "questions": {"viewer": "critic", "writer": "other"}, "mine.py:asking": {"judge": "critic"}}
    rewards["mine.py:Asking"] = {"judge": "other"}
    other = replace(CRITIC, model="other")
    found = parts(rewards, endpoints={"critic": CRITIC, "other": other, "unused": replace(CRITIC, model="unused")})
    first, second, questions, function, asking = (part for part, _ in found)
    assert first.score.endpoint is second.score.endpoint is questions.score.viewer is function.options["judge"]
    assert questions.score.writer is asking.score.judge is not first.score.endpoint
    assert made == [CRITIC, other], "who is not named is not made"
    assert function(ROWS).outcome == [None] and asking.score.other is None


def test_a_model_in_this_process_is_loaded_once(monkeypatch):
    made = []
    monkeypatch.setattr(choice, "LocalVLM", lambda config: made.append(config.model) or Client(config))
    judges = {f"judge/{name}": {"endpoint": "here"} for name in ("helpfulness", "text_relevance")}
    settings = build(RewardSettings, {"rewards": judges, "endpoints": {"here": {"local": {"model": "DIR"}}}}, "my.yaml")
    one, other = (part.score.endpoint for part, _ in reward_parts(settings))
    assert one is other and made == ["DIR"]
    with pytest.raises(InputError, match="my.yaml: endpoints.here: local: runs in this process; leave out base_url"):
        build(RewardSettings, {"endpoints": {"here": {"local": {"model": "DIR"}, "base_url": "http://x"}}}, "my.yaml")


def test_models_that_cannot_be_had_name_the_endpoint(tmp_path):
    judge = {"judge/helpfulness": {"endpoint": "critic"}}
    assert refused(judge, endpoints={"critic": SharedEndpoint(model="m")}).startswith("endpoints.critic: base_url: ")
    local = build(RewardSettings, {"endpoints": {"critic": {"local": {"model": str(tmp_path)}}}}, "my.yaml").endpoints
    assert refused(judge, endpoints=local).startswith("endpoints.critic.local: ")


ENDPOINTS = {"critic": CRITIC, "other": CRITIC}


@pytest.mark.parametrize(
    ("rewards", "endpoints", "words"),
    [
        ({"judge/helpfulness": 1}, {}, "rewards.judge/helpfulness.endpoint: missing; name one of `endpoints: {NAME: "),
        ({"judge/helpfulness": 1}, ENDPOINTS, "rewards.judge/helpfulness.endpoint: missing; there are critic, other$"),
        (
            {"judge/helpfulness": {"endpoint": "critc"}},
            ENDPOINTS,
            "rewards.judge/helpfulness.endpoint: 'critc' is none of `endpoints:`; there are critic, other$",
        ),
        (
            {"judge/helpfulness": {"endpoint": "critic"}},
            {},
            "rewards.judge/helpfulness.endpoint: 'critic' is none of `endpoints:`; `endpoints:` names none$",
        ),
        ({"judge/helpfulness": {"endpoint": 3}}, ENDPOINTS, "endpoint: 3 is none of `endpoints:`; there are critic, "),
        ({"questions": 1}, {}, "rewards.questions.viewer: missing; name one of `endpoints: "),
        ({"questions": {"viewer": "critic", "writer": "x"}}, ENDPOINTS, "rewards.questions.writer: 'x' is none of "),
        ({"mine.py:Asking": {"judge": "x"}}, ENDPOINTS, "rewards.mine.py:Asking.judge: 'x' is none of `endpoints:`"),
        ({"mine.py:asking": 1}, {}, "rewards.mine.py:asking.judge: missing; name one of `endpoints: "),
        (
            {"text/rouge_l": {"encoder": "gpu"}},
            {},
            "rewards.text/rouge_l.encoder: 'gpu' is none of `encoders:`; there ",
        ),
    ],
)
def test_a_name_that_nothing_shared_has(rewards, endpoints, words):
    with pytest.raises(InputError, match=words):
        build_reward(RewardSettings(rewards, endpoints=endpoints))


# ---- encoders ----


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return tiny_models.clip(tmp_path_factory.mktemp("clip"))


def test_parts_that_name_an_encoder_share_its_models(clip, monkeypatch):
    loaded = []
    load = pretrained.load_model
    monkeypatch.setattr(pretrained, "load_model", lambda place, unused=(): loaded.append(place) or load(place, unused))
    rewards = {"image/clipscore": {"model": clip}, "consistency/clip": {"model": clip}, "text/rouge_l": 1}
    config = EncoderConfig("cpu", batch_size=2)
    image, consistency, _ = (part.score for part, _ in parts(rewards, encoders={"default": config}))
    assert image.scorer.model is consistency.encode.model and loaded == [clip]
    assert image.scorer.batch_size == consistency.encode.batch_size == 2
    assert image.encoder is consistency.encoder and image.encoder.config is config

    rewards["consistency/clip"]["encoder"] = "small"
    encoders = {"small": EncoderConfig("cpu", "bfloat16", 1)}
    image, consistency, _ = (part.score for part, _ in parts(rewards, encoders=encoders))
    assert image.encoder.config == EncoderConfig() and consistency.encode.batch_size == 1
    assert image.scorer.model is not consistency.encode.model and loaded == [clip] * 3
