"""Rewards by rule: form, order of texts and pictures, placements."""
