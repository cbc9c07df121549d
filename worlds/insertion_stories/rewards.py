"""Exact rewards of insert or generate on the embedded world: the choice at each step, its sentence, its drawn picture.

For a choice answer the picture that it is and the text of its step, in which the candidates were looked at. Drawn
pictures are held against the plan and the sentence where one was to be drawn; elsewhere the choice says it all. What
is past the plan earns 0, and a step that the answer lacks counts as 0 in the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...configs.registry import register
from ...rewards.base import Completion, RewardOutput
from ..picture_stories.scenes import Scene, read_pictures
from .scenes import Plan, Step, plan_of, read_steps


@register("reward", "insertion_stories/choice")
class ChoiceReward:
    """Insert the candidate that fits, draw where none does, leave where no picture is wanted."""

    name = "insertion_stories_choice"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        def score(plan: Plan, steps: Sequence[Step], add: Add) -> float:
            right = 0
            for number, step in enumerate(steps):
                held = number < len(plan.scenes) and step.choice == plan.wanted(number)
                right += held
                for place in (step.segment, *step.places):
                    add(place, float(held))
            return right / max(len(plan.scenes), len(steps))

        return _scored(completions, score)


@register("reward", "insertion_stories/text")
class StepTextReward:
    """Sentences against the plan."""

    name = "insertion_stories_text"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        def score(plan: Plan, steps: Sequence[Step], add: Add) -> float:
            total = 0.0
            for number, step in enumerate(steps):
                matched = plan.scenes[number].matches(step.said) if number < len(plan.scenes) else 0.0
                total += matched
                add(step.segment, matched)
            return total / max(len(plan.scenes), len(steps))

        return _scored(completions, score)


@register("reward", "insertion_stories/image_plan")
class StepImageReward:
    """Drawn pictures against the plan."""

    name = "insertion_stories_image_plan"

    def __call__(self, completions: Sequence[Completion]) -> RewardOutput:
        drawn = [i for c in completions for i in c.answer.images if i.origin == "generated"]
        shown = dict(zip(map(id, drawn), read_pictures([image.pixels() for image in drawn]), strict=True))

        def score(plan: Plan, steps: Sequence[Step], add: Add) -> float | None:
            wanted = [number for number in range(len(plan.scenes)) if plan.wanted(number)[0] == "generate"]
            total = 0.0
            for number in wanted:
                step = steps[number] if number < len(steps) else None
                if step is None or step.choice != ("generate", None):
                    continue
                aim = self._aim(plan.scenes[number], step)
                matched = aim.matches(shown[id(step.images[0])]) if aim else 0.0  # a sentence may state no scene
                total += matched
                add(step.places[0], matched)
            return total / len(wanted) if wanted else None

        return _scored(completions, score)

    def _aim(self, planned: Scene, step: Step) -> Scene | None:
        """What the picture is held against."""
        return planned


@register("reward", "insertion_stories/image_sentence")
class OwnStepImageReward(StepImageReward):
    """Drawn pictures against the model's own sentences."""

    name = "insertion_stories_image_sentence"

    def _aim(self, planned: Scene, step: Step) -> Scene | None:
        return step.said


Add = Callable[[int | None, float], None]
"""Gives a segment, by its index, a score; several are averaged."""


def _scored(
    completions: Sequence[Completion], score: Callable[[Plan, Sequence[Step], Add], float | None]
) -> RewardOutput:
    """`score` looks at the steps of one answer, scores its segments, and returns the outcome."""
    outcome: list[float | None] = []
    segments: list[list[float | None]] = []
    for completion in completions:
        given: list[list[float]] = [[] for _ in completion.answer.segments]

        def add(place: int | None, value: float, given: list[list[float]] = given) -> None:
            if place is not None:
                given[place].append(value)

        outcome.append(score(plan_of(completion.prompt), read_steps(completion.answer.segments), add))
        segments.append([_mean(values) for values in given])
    return RewardOutput(outcome, segments)


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None
