"""Data sets: read a data yaml, check its files, stream augmented samples keyed by (seed, epoch, index)."""
