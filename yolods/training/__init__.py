"""The training loop and its parts: batches, pace, .pt files, model selection, final validation."""
