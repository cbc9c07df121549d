"""What `limner bench NAME` times, and the clock, models and baselines that it takes."""
