"""Checkpoints: folders, originals brought in, the Hub."""
