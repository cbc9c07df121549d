"""Rewards of another machine: server and client."""
