"""The engine of a detector in pipeline stages, with its timer and its statistics."""
