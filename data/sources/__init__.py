"""Readers of outside data, a file each: Markdown folders, MRAMG-Bench files, shards; and what they report."""
