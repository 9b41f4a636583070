"""Optimizers: supported ones, unsupported ones with reasons, the JSON's "optimizer" block."""
