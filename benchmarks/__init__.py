"""Measurements that are repeated and recorded; each script says how."""
