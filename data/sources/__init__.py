"""Readers of outside data: Markdown folders, MRAMG-Bench files."""
