"""The sampler waits for the device once in a step of texts, and never inside a picture; in buckets too."""

from limner.models.sampler import slots as sampler_slots
from limner.studies.bench import slots
from limner.studies.bench.slots import refilled_and_waves, waits
from limner.worlds.picture_stories.scenes import SCENES, story_prompt


def test_one_wait_a_text_step_and_none_inside_a_picture(make_policy, monkeypatch):
    policy = make_policy(0)
    prompt = policy.processor.encode(story_prompt(SCENES[:2]))
    assert waits(policy, prompt, 4) == {"text": 1.0, "picture": 0.0}
    stock = sampler_slots.Sampler.feed

    def looks(self):
        if self.state.place.any():  # a planted wait
            stock(self)

    monkeypatch.setattr(sampler_slots.Sampler, "feed", looks)
    assert waits(policy, prompt, 4)["picture"] == 1.0


def test_refilled_slots_take_fewer_steps_than_waves(make_policy, monkeypatch):
    monkeypatch.setattr(slots, "LONG", 24)
    policy, steps, marks = make_policy(0), [], []
    feed, prompt = sampler_slots.Sampler.feed, policy.processor.encode(story_prompt(SCENES[:2]))
    monkeypatch.setattr(sampler_slots.Sampler, "feed", lambda self: steps.append(None) or feed(self))
    monkeypatch.setattr(slots, "now", lambda: marks.append(len(steps)) or float(len(steps)))
    found = refilled_and_waves(policy, prompt, 2, 1)
    assert 0 < found["refilled"]["steps"] < found["waves"]["steps"]
    for way, (began, ended) in zip(("waves", "refilled"), (marks[:2], marks[2:]), strict=True):
        assert found[way]["seconds"] == [ended - began]
        assert 0 <= ended - began - found[way]["steps"] <= slots.WAVES, "the last step of each call feeds nothing"
        assert found[way]["steps"] < found[way]["rows"] <= 2 * found[way]["steps"]
    assert policy.hidden.__func__ is type(policy).hidden
