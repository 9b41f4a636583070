"""How long a step takes under a layout, before it runs."""
