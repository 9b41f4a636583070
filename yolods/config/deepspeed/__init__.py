"""The DeepSpeed JSON: its keys and blocks, its faults, and the resolved configuration."""
