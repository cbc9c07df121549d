"""Runs of any size: sharding, adapters, checkpoints, the run's folder."""
