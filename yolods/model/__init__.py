"""The detector: building it, preparing it for a precision, its loss, and plain .pt files."""
