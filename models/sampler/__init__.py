"""The one sampler: prompts in, ids with the log-probs they were drawn with out."""
