"""Evaluation: generate, score, aggregate."""
