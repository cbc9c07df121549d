"""Answers over HTTP: an engine that batches requests as they come, the wire forms that clients read, and a page."""
