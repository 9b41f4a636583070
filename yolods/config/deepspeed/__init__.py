"""A DeepSpeed JSON: its keys, its blocks, what DeepSpeed would fail of, and all of it resolved."""
