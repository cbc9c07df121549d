"""Documents, token sequences, base-model families, the one sampler, checkpoints."""
