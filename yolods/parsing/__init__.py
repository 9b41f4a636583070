"""Reads command lines, JSON and YAML as users write them; every fault names its place."""
