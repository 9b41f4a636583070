"""Copies between a host's memory and a device's that nobody waits for. Needs torch and nothing of ours."""
