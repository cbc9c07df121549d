"""The mathematics of extended GRPO: tensors in, tensors out."""
