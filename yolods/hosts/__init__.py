"""Hosts: which take part, what they say about themselves, and what their ranks find in the environment."""
