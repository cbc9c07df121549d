"""Evaluation: benchmarks written, scored and counted; before against after; whether a judge is any good."""
