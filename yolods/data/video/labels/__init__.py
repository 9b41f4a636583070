"""The labels of videos: where they are, how they number frames, and their boxes."""
