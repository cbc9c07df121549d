"""VILA-U: residual codes, drawn by a depth transformer."""
