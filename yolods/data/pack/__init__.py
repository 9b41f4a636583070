"""Packs: a split's images and labels in plain tar files, with an index that finds each at once."""
