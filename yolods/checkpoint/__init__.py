"""Sharded checkpoints to resume from, and their export to plain .pt files."""
