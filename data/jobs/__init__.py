"""Work on outside data that is more than one process: tasks and their parts; and which source reads what."""
