"""Adapters for DeepSpeed's optimizers: master weights, shards, gradients and loss scale."""
