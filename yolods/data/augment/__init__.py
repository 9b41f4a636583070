"""ultralytics' augmentation: the same samples in less time, and partners out of a block."""
