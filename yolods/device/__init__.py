"""Copies between host and device that nobody waits for. Imports torch and nothing of yolods."""
