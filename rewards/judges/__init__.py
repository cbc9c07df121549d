"""Rewards by asking a vision-language model: scores by template, yes/no questions."""
