"""Near-duplicate images between splits: hashes, the search for pairs, warnings and a picture."""
