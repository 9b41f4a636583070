"""How many gradients are reduced together where the JSON does not say."""

from __future__ import annotations

BUCKETS = 6
"""Buckets of a model's gradients, so that about five sixths of them are on their way before the
backward pass is over. Each costs a call per step."""
LARGEST = 2**23
"""Most elements of a bucket, 32 MiB in fp32: beyond that, the cost of a call itself no longer
matters (PyTorch DDP uses 25 MiB, 2006.15704), and a bucket takes memory three times."""


def bucket_elements(trained: int, *, whole: bool = False) -> int:
    """Elements of a bucket of a model, or stage, with so many trained parameters.

    Args:
        trained: elements of all gradients.
        whole: whether all gradients are reduced after the backward pass, where several buckets
            would only cost calls.
    """
    return max(trained if whole else min(-(-trained // BUCKETS), LARGEST), 1)
