"""The parts of a start, in the order in which `training/start.py` takes them."""
