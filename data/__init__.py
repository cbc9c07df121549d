"""From outside data to batches of rows: sources, shards, mixture, packing; prompts, and tasks of an inserter."""
