"""Warm-up and extended GRPO."""
