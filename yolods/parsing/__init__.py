"""Files and words as users write them, read so that every fault is told with its place."""
