"""A release: model card, lineage, checks, upload."""
