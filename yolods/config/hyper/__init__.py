"""Hyper-parameters, and what is said of settings that are not supported or not used."""
