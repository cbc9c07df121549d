"""Rewards: each scores a group of completions, by document and by segment."""
