"""Sees to it that no run hangs: heartbeats, the failure detector, and what a rank failed with."""
