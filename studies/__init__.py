"""Runs that combine all of the above: the demo."""
