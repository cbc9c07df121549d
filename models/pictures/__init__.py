"""Pixels to picture codes and back."""
