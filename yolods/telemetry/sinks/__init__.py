"""Where a run's curves go besides its own files: one class per name of --loggers."""
