"""The detector: built by name, made ready for a precision, scored, read from and written to plain .pt files."""
