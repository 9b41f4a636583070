"""Precision, recall and mAP over all ranks, and `yolods val`."""
