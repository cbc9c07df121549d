"""Packaged YAML configurations, found by name (`warmup/tiny`)."""
