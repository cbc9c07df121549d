"""Ways to answer from what was found: by rule, by asking a model, by an inserter, in one stream."""
