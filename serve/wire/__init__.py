"""The wire forms: requests of clients to prompts and settings, and events to what clients read."""
