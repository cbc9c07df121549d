"""Janus-Pro: two heads, and its picture codes."""
