"""Requests on their way through the engine: who is next, what is read and painted of them, and what they say."""
