"""This process among the ranks of a run, and how ranks talk. Knows nothing of YOLO."""
