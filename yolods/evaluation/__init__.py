"""Sharded P, R and mAP, and `yolods val`."""
