"""Recomputes BatchNorm's statistics for a finished model and its images ("precise BatchNorm").

Running statistics are a moving average over the last 33 batches or so (momentum 0.03), each with
the weights of its step and with augmented images. Recomputed statistics belong to the weights that
are saved, and to images without augmentation.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv 2105.07576, section 3. Every batch is
normalised by its own statistics, and the variance of all images is E[variance + mean^2] - E[mean]^2
over the batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from yolods.model.layers import BatchNormFloat32, SyncBatchNormFloat32


class Tallies:
    """Sums of the batch statistics of several BatchNorm layers, on this rank."""

    def __init__(self, norms: Sequence[nn.BatchNorm2d], device: torch.device) -> None:
        self._norms = list(norms)
        # fp64: the variance is a small difference of two large means.
        self._means = [
            norm.running_mean.new_zeros(norm.num_features, dtype=torch.float64) for norm in norms
        ]
        self._squares = [torch.zeros_like(mean) for mean in self._means]
        self._images = torch.zeros(1, dtype=torch.float64, device=device)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Let the layers normalise by their rank's batch and keep its statistics in buffers."""
        kept = [
            (type(norm), norm.momentum, norm.num_batches_tracked.clone()) for norm in self._norms
        ]
        for norm in self._norms:
            norm.train()
            # The running statistics then equal those of the last batch.
            norm.momentum = 1.0
            # A synchronised layer would count a rank's batch on all ranks, also one that must not
            # count.
            if isinstance(norm, SyncBatchNormFloat32):
                norm.__class__ = BatchNormFloat32
        try:
            yield
        finally:
            for norm, (kind, momentum, batches) in zip(self._norms, kept, strict=True):
                norm.eval()
                norm.__class__ = kind
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(batches)

    @torch.no_grad()
    def add(self, images: int) -> None:
        """Add the last batch's statistics, weighted by how many of its images count."""
        if not images:
            return
        for norm, mean, square in zip(self._norms, self._means, self._squares, strict=True):
            batch_mean = norm.running_mean.double()
            mean += images * batch_mean
            square += images * (norm.running_var.double() + batch_mean.square())
        self._images += images

    def sums(self) -> list[Tensor]:
        """All sums in fp64, to be summed or averaged over the replicas in place."""
        return [*self._means, *self._squares, self._images]

    @torch.no_grad()
    def apply(self) -> None:
        """Set the layers' statistics to those of all counted images."""
        for norm, mean, square in zip(self._norms, self._means, self._squares, strict=True):
            mean, square = mean / self._images, square / self._images
            norm.running_mean.copy_(mean)
            norm.running_var.copy_((square - mean.square()).clamp(min=0))
