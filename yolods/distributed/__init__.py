"""World, mesh, channels and store of the ranks, and what the watchdog needs to know of their
waits."""
