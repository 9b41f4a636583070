"""Detection of ranks that hang or die: heartbeats, failure detector, sidecar, records of
failures."""
