"""A document as tensors: token sequences, the processor between the two, templates, text tokenizers."""
