"""Readers of outside data, a file or a room each; what they report, and the records and pictures they share."""
