"""One stage of a pipelined detector: a range of the graph's nodes, with the weights of these nodes and no others."""

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
    """Nodes start .. stop - 1. Parameters and buffers carry the names they have in the whole DetectionModel."""

    def __init__(self, graph: Graph, start: int, stop: int, *, recompute: int = 0) -> None:
        """Make the nodes' layers on the CPU, with memory but without values; see `initialise`.

        Args:
            recompute: nodes a segment whose activations are computed again in the backward pass; 0: all are kept.
        """
        super().__init__()
        self._graph, self.start, self.stop, self._recompute = graph, start, stop, recompute
        for node in graph.nodes[start:stop]:
            for name in node.modules:
                attach(self, name, deepcopy(graph.skeleton.get_submodule(name)).to_empty(device="cpu"))
        # By name, not as attributes: the modules are registered once, under their place in the whole model.
        self._nodes = modules_of(graph.nodes[start:stop], self)

    def forward(self, values: dict[str, Any]) -> dict[str, Any]:
        """From the values that cross the cut before this stage to those that cross the one after it."""
        if not (self._recompute and self.training):
            return run_nodes(self._graph, self.start, self.stop, self._nodes, values)
        for first in range(self.start, self.stop, self._recompute):
            values = self._segment(first, min(first + self._recompute, self.stop), values)
        return values

    def _segment(self, first: int, last: int, values: dict[str, Any]) -> dict[str, Any]:
        return checkpoint(
            run_nodes,
            *(self._graph, first, last, self._nodes, values),
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), self._frozen_statistics()),
            preserve_rng_state=False,
        )

    @contextmanager
    def _frozen_statistics(self) -> Iterator[None]:
        """Recomputing must not count a micro-batch twice in BatchNorm's running statistics and its count of batches."""
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
    """A whole detector in segments, with the outputs of ultralytics' DetectionModel for the same images."""

    def __init__(self, net: nn.Module, segments: int | None) -> None:
        """Take over a CPU model's weights, under their names.

        Args:
            net: a DetectionModel.
            segments: at most the number of nodes; None: about its square root, at which what is kept between segments
                and what one segment brings back in the backward pass are about as large (arXiv 1604.06174).
        """
        graph = build_graph(net)
        nodes = len(graph.nodes)
        count = min(segments or round(math.sqrt(nodes)), nodes)
        super().__init__(graph, 0, nodes, recompute=math.ceil(nodes / count))
        self.load_state_dict(net.state_dict())

    def __str__(self) -> str:
        """What is kept, for people."""
        segments = math.ceil(self.stop / self._recompute)
        return f"activation checkpointing: {segments} segments of at most {self._recompute} of {self.stop} nodes"

    def forward(self, images: Tensor) -> Any:
        """(N, C, H, W) -> the raw predictions; in evaluation mode a pair with them in the second place."""
        raw = super().forward({IMAGE: images})[OUT]
        return raw if self.training else (None, raw)


def attach(root: nn.Module, name: str, module: nn.Module) -> None:
    """Register `module` under a dotted name, making the empty modules on the way."""
    *way, last = name.split(".")
    for part in way:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.add_module(last, module)
