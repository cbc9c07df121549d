"""Markdown pages as people write them: the dialects' rules, the pictures a page names, what is left, the files."""
