"""Resolves names that are not paths: of a model, a data set, a DeepSpeed configuration."""
