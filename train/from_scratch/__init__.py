"""A new small model from data alone, its tokenizers too."""
