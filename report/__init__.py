"""The HTML pages people look at."""
