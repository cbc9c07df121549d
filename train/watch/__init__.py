"""What is seen of a run: diagnostics, alarms, trajectories, progress."""
