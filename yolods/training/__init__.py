"""Parts of a run's loop: its batches and pace, the .pt files, which epoch is the best, and the last validation."""
