"""What a rank holds in memory, by term, before anything runs."""
