"""Documents, token sequences, base-model families, the one sampler, checkpoints; other models that are asked."""
