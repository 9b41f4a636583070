"""The nodes of the detector's graph: how a parsed layer divides into nodes, and how one runs.

    Conv, SPPF, Concat, ...    layer      reads its inputs, writes '4'
    C3                         open       reads x, writes '4.h' = cv1(x) and '4.b' = cv2(x)
                               block i    '4.h' -> '4.h1' -> '4.h2' ... through m[i]
                               close      cv3(cat(h, b)) -> '4'
    Detect, each level i       block      the box head -> '24.i.box'
                               block j    all convolutions of the class head except the last
                                          -> '24.i.cls0' ...
                               level      cat(box, last convolution) -> '24.i',
                                          (N, 4 x reg_max + nc, H, W)
                               detect     after the last level: reads them all, writes 'out',
                                          the raw predictions

'x' is the image. Between two blocks of a C3 only h and b cross a cut; together they have as many
channels as the C3 writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

IMAGE, OUT = "x", "out"
Role = Literal["layer", "open", "block", "close", "level", "detect"]


@dataclass(frozen=True)
class Node:
    """One operation of the forward pass, and the smallest part that a cut can separate."""

    index: int
    """Position in the order of execution."""
    layer: int
    """Index of its layer in `DetectionModel.model`."""
    role: Role
    """What it computes; see the table in the module's docstring."""
    reads: tuple[str, ...]
    """Names of the values it reads."""
    writes: tuple[str, ...]
    """Names of the values it writes."""
    modules: tuple[str, ...]
    """Submodules that it runs and whose weights it owns, by names below the DetectionModel."""
    name: str
    """Name in messages.

    Examples: '4', '4.open', '4.m.0', '4.close', '24.0.box', '24.0.cls0', '24.0.cat', '24.detect'.
    """


def nodes_of_layer(layer: nn.Module, split: bool) -> Iterator[Node]:
    """The nodes of one parsed layer; the caller sets their indices."""
    from ultralytics.nn.modules.block import C3
    from ultralytics.nn.modules.head import Detect

    k, own = layer.i, f"model.{layer.i}"
    reads = tuple(_source(k, f) for f in ([layer.f] if isinstance(layer.f, int) else layer.f))
    # C3x and C3Ghost only fill `m` with other blocks. C3TR's `m` is no list, and other layers
    # compute something else.
    if (
        split
        and getattr(type(layer), "forward", None) is C3.forward
        and isinstance(layer.m, nn.Sequential)
    ):
        yield from _nodes_of_c3(k, own, reads, len(layer.m))
    elif type(layer) is Detect and split:
        for i, read in enumerate(reads):
            yield from _nodes_of_level(k, own, i, read, len(layer.cv3[i]))
        levels = tuple(f"{k}.{i}" for i in range(len(reads)))
        yield Node(0, k, "detect", levels, (OUT,), (f"{own}.dfl",), f"{k}.detect")
    elif isinstance(layer, Detect):
        yield Node(0, k, "detect", reads, (OUT,), (own,), str(k))
    else:
        yield Node(0, k, "layer", reads, (str(k),), (own,), str(k))


def _nodes_of_c3(k: int, own: str, reads: tuple[str, ...], blocks: int) -> Iterator[Node]:
    yield Node(0, k, "open", reads, (f"{k}.h", f"{k}.b"), (f"{own}.cv1", f"{own}.cv2"), f"{k}.open")
    h = f"{k}.h"
    for i in range(blocks):
        yield Node(0, k, "block", (h,), (f"{k}.h{i + 1}",), (f"{own}.m.{i}",), f"{k}.m.{i}")
        h = f"{k}.h{i + 1}"
    yield Node(0, k, "close", (h, f"{k}.b"), (str(k),), (f"{own}.cv3",), f"{k}.close")


def _nodes_of_level(k: int, own: str, i: int, read: str, depth: int) -> Iterator[Node]:
    """The nodes of one Detect level.

    The box head comes first, so that the level's input is no longer needed after the class head's
    first convolution.
    """
    box, c = f"{k}.{i}.box", read
    yield Node(0, k, "block", (read,), (box,), (f"{own}.cv2.{i}",), box)
    for j in range(depth - 1):
        written = f"{k}.{i}.cls{j}"
        yield Node(0, k, "block", (c,), (written,), (f"{own}.cv3.{i}.{j}",), written)
        c = written
    yield Node(
        0, k, "level", (box, c), (f"{k}.{i}",), (f"{own}.cv3.{i}.{depth - 1}",), f"{k}.{i}.cat"
    )


def _source(layer: int, f: int) -> str:
    """The value of ultralytics' `from` index: absolute, or negative and relative to `layer`."""
    k = f if f >= 0 else layer + f
    return IMAGE if (layer, f) == (0, -1) else str(k)


def run_node(
    node: Node, modules: Mapping[str, nn.Module], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Compute what one node writes, exactly as ultralytics' own layer does.

    Args:
        node: a node of a graph.
        modules: at least the submodules in `node.modules`.
        values: at least the values in `node.reads`; not changed. Float tensors (N, C, H, W).

    Returns:
        the values in `node.writes`. 'out' is, in training and evaluation, the dictionary `boxes`
        (N, 4 x reg_max, A), `scores` (N, nc, A) and `feats`, the levels in 4-D. For a split head,
        `feats` are the levels' outputs instead of their inputs: loss and decoder read only their H
        and W, and the inputs would have to cross every later cut.
    """
    inputs = [values[name] for name in node.reads]
    parts = [modules[name] for name in node.modules]
    return dict(zip(node.writes, _RUN[node.role](parts, inputs), strict=True))


def _run_layer(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[Tensor]:
    return (parts[0](inputs[0] if isinstance(parts[0].f, int) else inputs),)


def _run_open(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    return parts[0](inputs[0]), parts[1](inputs[0])


def _run_block(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[Tensor]:
    return (parts[0](inputs[0]),)


def _run_close(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[Tensor]:
    return (parts[0](torch.cat(inputs, 1)),)


def _run_level(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[Tensor]:
    return (torch.cat((inputs[0], parts[0](inputs[1])), 1),)


def _run_detect(parts: list[nn.Module], inputs: list[Tensor]) -> tuple[dict[str, Any]]:
    from ultralytics.nn.modules.head import Detect

    if isinstance(parts[0], Detect):
        return (parts[0].forward_head(inputs, **parts[0].one2many),)
    # DFL's `c1` is reg_max; with reg_max 1 an Identity replaces it.
    box_channels = 4 * getattr(parts[0], "c1", 1)
    points = torch.cat([level.flatten(2) for level in inputs], 2)
    return (
        {"boxes": points[:, :box_channels], "scores": points[:, box_channels:], "feats": inputs},
    )


_RUN = {
    "layer": _run_layer,
    "open": _run_open,
    "block": _run_block,
    "close": _run_close,
    "level": _run_level,
    "detect": _run_detect,
}
