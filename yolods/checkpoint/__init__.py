"""Sharded checkpoints that a run goes on from, and their way to plain .pt files."""
