"""The sampler waits for the device once in a step of texts, and never inside a picture; in buckets too."""

from limner.models.sampler import slots as sampler_slots
from limner.studies.bench import slots
from limner.studies.bench.slots import refilled_over_waves, waits
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
    feed = sampler_slots.Sampler.feed
    monkeypatch.setattr(sampler_slots.Sampler, "feed", lambda self: steps.append(None) or feed(self))
    monkeypatch.setattr(slots, "now", lambda: marks.append(len(steps)) or float(len(steps)))
    (ratio,) = refilled_over_waves(policy, policy.processor.encode(story_prompt(SCENES[:2])), 2, 1)
    refilled, waves = marks[1] - marks[0], marks[3] - marks[2]
    assert 0 < refilled < waves and ratio == waves / refilled
