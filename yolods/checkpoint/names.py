"""The names of a checkpoint's files. Needs no imports, so that a launcher can read them."""

LATEST = "latest"
"""The file in `checkpoints/` that contains the name of the newest complete checkpoint."""
PROGRESS = "progress.json"
"""The run's progress at the checkpoint."""
MODEL = "model.json"
"""The architecture, the contents of the shards, and the record of `resume_check`."""
