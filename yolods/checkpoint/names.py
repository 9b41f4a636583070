"""What the files of a checkpoint are called. Needs only the standard library, so that a launcher can look at them."""

LATEST = "latest"
"""In `checkpoints/`: the name of the newest whole checkpoint."""
PROGRESS = "progress.json"
"""Where the run stood."""
MODEL = "model.json"
"""The architecture, what the shards are made of, and what the checkpoint depends on."""
