"""The page that shows sampled groups, token by token."""
