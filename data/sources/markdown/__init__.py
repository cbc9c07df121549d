"""A folder of Markdown as people write it: files -> page (blocks, inlines, what each shows) -> documents."""

from .documents import Markdown, read_markdown

__all__ = ["Markdown", "read_markdown"]
