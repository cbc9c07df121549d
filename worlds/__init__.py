"""The embedded worlds: each a room with all that is its own. They come in by the registry, like anybody's plug-in."""
