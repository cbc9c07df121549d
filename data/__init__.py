"""Sources, shards, mixture, packing: everything between a file and a token sequence batch."""
