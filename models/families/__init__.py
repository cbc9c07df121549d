"""Base models, a file or a room each, behind the contract of `models.policy`."""
