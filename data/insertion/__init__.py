"""Where pictures stand in a text, how an inserter is asked, and its tasks."""
