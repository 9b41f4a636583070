"""Seconds that a model's nodes compute, forward and backward, at any number of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from yolods.plan.cost import BACKWARD, TRAFFIC, Cost
from yolods.plan.time.gpus import COMPUTE_EFFICIENCY, MEMORY_EFFICIENCY, GpuFigures

if TYPE_CHECKING:
    from yolods.plan.step_profile import StepProfile

FORWARD_TRAFFIC = 7 / 19
"""Share of `TRAFFIC` in the forward pass; the derivation at `TRAFFIC` counts 7 of 19 accesses."""
KERNEL_LAUNCH = 5e-6
"""Assumed seconds until a kernel runs, which no size of a batch shortens."""
KERNELS = (3, 5)
"""Kernels of a node's forward and backward pass: those of a convolution, BatchNorm and SiLU."""


@dataclass(frozen=True, eq=False)
class NodeTimes:
    """Seconds of each node: of a pass itself, and of each image in it.

    Each array has shape (nodes,) and dtype float64.
    """

    pass_forward: np.ndarray
    """Seconds of a forward pass whatever its images."""
    pass_backward: np.ndarray
    """Seconds of a backward pass whatever its images."""
    forward: np.ndarray
    """Seconds per image of a forward pass."""
    backward: np.ndarray
    """Seconds per image of a backward pass."""
    source: str
    """measured or assumed."""

    def stages(
        self, bounds: Sequence[int], images: int, *, recompute: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of one pass of each stage.

        Args:
            bounds: stage s runs nodes bounds[s] .. bounds[s + 1] - 1.
            images: images per pass.
            recompute: whether the backward pass runs the forward pass again.

        Returns:
            two (stages,) float64 arrays: of the forward and of the backward pass.
        """
        starts = np.asarray(bounds[:-1])
        forward = np.add.reduceat(self.pass_forward + images * self.forward, starts)
        backward = np.add.reduceat(self.pass_backward + images * self.backward, starts)
        return forward, backward + forward if recompute else backward

    def both(self, images: int, *, recompute: bool = False) -> tuple[float, ...]:
        """Seconds per node, forward and backward together, of one pass with `images` images."""
        bounds = range(len(self.forward) + 1)
        forward, backward = self.stages(bounds, images, recompute=recompute)
        return tuple((forward + backward).tolist())


def assumed_times(cost: Cost, gpu: GpuFigures, precision: str) -> NodeTimes:
    """Seconds by a roofline: FLOPs at the peak and activations at the memory's rate, added.

    They are added because they are different kernels: convolutions wait for arithmetic, BatchNorm
    and SiLU for memory (`plan.cost.node_seconds`). Both rates are the published ones times an
    assumed efficiency, and a kernel's launch takes an assumed time.

    Args:
        cost: counted with the bytes of this precision's activations.
        gpu: the device.
        precision: in which convolutions compute.

    Raises:
        ValueError: the device has no units for this precision.
    """
    peak = gpu.peak(precision)
    if peak is None:
        raise ValueError(f"{gpu.name} does not compute in {precision}")
    flops = np.array([node.flops for node in cost.nodes]) / (peak * COMPUTE_EFFICIENCY)
    kept = np.array([node.activation_bytes for node in cost.nodes])
    moved = TRAFFIC * kept / (gpu.bandwidth * MEMORY_EFFICIENCY)
    each = np.full(len(flops), KERNEL_LAUNCH)
    return NodeTimes(
        KERNELS[0] * each,
        KERNELS[1] * each,
        flops + FORWARD_TRAFFIC * moved,
        BACKWARD * flops + (1 - FORWARD_TRAFFIC) * moved,
        "assumed",
    )


def measured_times(seconds: Sequence[float], images: int) -> NodeTimes:
    """Times out of a profile of forward and backward together (`plan.profile.measure`).

    A forward pass is taken as a third of both, as for a convolution (`BACKWARD`), and the time as
    proportional to the images.

    Args:
        seconds: of each node for a pass of `images` images.
    """
    each = np.asarray(seconds, float) / images
    none, share = np.zeros(len(each)), 1 / (1 + BACKWARD)
    return NodeTimes(none, none, share * each, (1 - share) * each, "measured")


def profiled_times(profile: StepProfile) -> NodeTimes:
    """Times out of steps on a CPU.

    The backward pass is divided among the nodes as the forward pass is. The loss belongs to the
    last node; it is small operations, whose time hardly grows with the images.
    """
    forward = np.array(profile.forward)
    none, lost = np.zeros(len(forward)), np.zeros(len(forward))
    lost[-1] = profile.loss
    backward = profile.backward * forward / forward.sum()
    return NodeTimes(none, lost, forward / profile.images, backward / profile.images, "measured")
