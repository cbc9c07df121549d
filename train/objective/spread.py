"""When the rewards of a group differ by so little that nothing can be learned. Pages without torch say so, too."""

SPREAD_FLOOR = 1e-3
"""A group's standard deviation is taken to be at least this: noise below it does not become a full advantage."""
