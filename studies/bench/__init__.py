"""One file a `limner bench NAME`."""
