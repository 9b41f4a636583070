"""Optimizers: those that yolods trains with, those that it refuses, and the JSON's block."""
