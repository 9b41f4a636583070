"""Builds ultralytics' DetectionModel from a name or yaml, and reports faults of the yaml."""
