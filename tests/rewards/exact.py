"""The hybrid of the embedded world, as `grpo/tiny` has it, for tests of many folders."""

STORIES = {
    "format": 1,
    "picture_stories/text_plan": 1,
    "picture_stories/image_plan": 1,
    "picture_stories/image_sentence": 1,
}
"""Of the section `rewards`."""
