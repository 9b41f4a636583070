"""Data sets: data yamls, checks of their files, and samples keyed by (seed, epoch, index)."""
