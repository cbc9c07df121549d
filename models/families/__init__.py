"""Base models behind the contract of `models.policy`: any causal language model, Chameleon, Emu3, Janus."""
