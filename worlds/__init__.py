"""The embedded worlds, each a plug-in with all that is its own: picture stories, those with candidates, captions."""
