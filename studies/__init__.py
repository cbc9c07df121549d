"""Runs that combine all of the above: the demo, ablation studies, benchmarks of speed."""
