"""One stage of a pipelined detector: a range of the graph's nodes, with only their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from yolods.model.graph.graph import IMAGE, OUT, Graph, build_graph, modules_of, run_nodes


class Stage(nn.Module):
    """Nodes start .. stop - 1.

    Parameters and buffers have the names of the whole DetectionModel.
    """

    def __init__(
        self, graph: Graph, start: int, stop: int, *, recompute: int = 0, device: str = "cpu"
    ) -> None:
        """Create the nodes' layers with memory but without values (see `initialise`).

        Args:
            device: "cpu", or "meta" for layers without memory.
            recompute: number of nodes per segment whose activations the backward pass computes
                again; 0 keeps all activations.
        """
        super().__init__()
        self._graph, self.start, self.stop, self._recompute = graph, start, stop, recompute
        for node in graph.nodes[start:stop]:
            for name in node.modules:
                attach(
                    self, name, deepcopy(graph.skeleton.get_submodule(name)).to_empty(device=device)
                )
        # A dict, not attributes: the modules are registered only once, under their names in the
        # whole model.
        self._nodes = modules_of(graph.nodes[start:stop], self)

    def forward(self, values: dict[str, Any]) -> dict[str, Any]:
        """Compute the values that leave this stage from those that enter it."""
        if not (self._recompute and self.training):
            return run_nodes(self._graph, self.start, self.stop, self._nodes, values)
        for first in range(self.start, self.stop, self._recompute):
            values = self._segment(first, min(first + self._recompute, self.stop), values)
        return values

    def _segment(self, first: int, last: int, values: dict[str, Any]) -> dict[str, Any]:
        return checkpoint(
            run_nodes,
            *(self._graph, first, last, self._nodes, values),
            # Reentrant checkpointing carries no dictionaries and needs inputs that require a
            # gradient.
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self._frozen_statistics()),
            # The layers draw no random numbers, so there is no state to save and restore.
            preserve_rng_state=False,
        )

    @contextmanager
    def _frozen_statistics(self) -> Iterator[None]:
        """Freeze BatchNorm's statistics and counts.

        Otherwise the recomputation would count a micro-batch twice.
        """
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        try:
            yield
        finally:
            for norm, (momentum, count) in zip(norms, kept, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count


class RecomputedDetector(Stage):
    """A whole detector in segments, with the same outputs as ultralytics' DetectionModel."""

    def __init__(self, net: nn.Module, segments: int | None) -> None:
        """Take over a model's weights, under their names.

        Args:
            net: a DetectionModel, on the CPU or on the meta device.
            segments: see `segment_length`.
        """
        graph = build_graph(net)
        nodes = len(graph.nodes)
        device = next(net.parameters()).device.type
        super().__init__(graph, 0, nodes, recompute=segment_length(nodes, segments), device=device)
        if device != "meta":
            self.load_state_dict(net.state_dict())

    def __str__(self) -> str:
        """What is kept, for people."""
        segments = math.ceil(self.stop / self._recompute)
        return (
            f"activation checkpointing: {segments} segments of at most {self._recompute} of "
            f"{self.stop} nodes"
        )

    def forward(self, images: Tensor) -> Any:
        """Raw predictions of images (N, C, H, W); the second item of a pair in evaluation mode."""
        raw = super().forward({IMAGE: images})[OUT]
        return raw if self.training else (None, raw)


def segment_length(nodes: int, segments: int | None) -> int:
    """Nodes per segment of a whole detector.

    Args:
        nodes: of the detector.
        segments: at most the number of nodes. None: about its square root, at which the activations
            kept between segments and those that one segment recomputes in the backward pass need
            about the same memory (arXiv 1604.06174).
    """
    return math.ceil(nodes / min(segments or round(math.sqrt(nodes)), nodes))


def attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register `module` under a dotted name, creating empty parent modules as needed."""
    *way, last = name.split(".")
    for part in way:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.add_module(last, module)
