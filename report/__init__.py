"""The HTML pages people look at, and releases with their model cards."""
