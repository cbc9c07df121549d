"""Captioned scenes for the dedicated inserter."""
