"""Frames of videos on their way into packs, and videos as the source of a split."""
