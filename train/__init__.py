"""Warm-up and extended GRPO: entries and trainer; objective, watching, scale, memory, new models, the inserter."""
