"""Before anything runs: what each node costs, where to cut, and how long the schedule takes. Pure functions."""
