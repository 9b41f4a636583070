"""Hyper-parameters, and messages about settings that are not supported or have no effect."""
