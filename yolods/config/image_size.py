"""Checks an image size against model and batch; messages show the arithmetic."""

from __future__ import annotations


def size_fault(imgsz: int, stride: int, model: str, source: str) -> str | None:
    """A fault if the size is not a multiple of the stride: the border would cut a cell.

    Args:
        imgsz: image size in pixels.
        stride: the model's largest stride in pixels.
        model: the model's name in the message.
        source: the source of the size: "--imgsz".
    """
    if imgsz % stride == 0:
        return None
    below = max(imgsz // stride, 1) * stride
    return (
        f"{source} {imgsz}: {model} needs a multiple of {stride}; use {below} or {below + stride}"
    )


def drawn_between(imgsz: int, multi_scale: float, stride: int) -> tuple[int, int]:
    """Half-open range in pixels of `multi_scale`, before rounding down to a multiple of
    `stride`."""
    return max(stride, int(imgsz * (1 - multi_scale))), int(imgsz * (1 + multi_scale) + stride)


def single_value_fault(
    imgsz: int, stride: int, micro_batch: int, *, multi_scale: float = 0.0, ranks: int = 1
) -> str | None:
    """A fault if BatchNorm would see one value per channel, for which torch raises an error.

    Args:
        imgsz: image size in pixels; a multiple of `stride`.
        stride: the model's largest stride in pixels.
        micro_batch: images per rank and forward pass.
        multi_scale: share of imgsz by which the size varies.
        ranks: number of ranks that share BatchNorm statistics.
    """
    smallest = (
        drawn_between(imgsz, multi_scale, stride)[0] // stride * stride if multi_scale else imgsz
    )
    cells = smallest // stride
    if micro_batch * ranks * cells * cells != 1:
        return None
    size = f"--imgsz {imgsz}" + (
        f" with multi_scale {multi_scale:g}, down to {smallest}" if multi_scale else ""
    )
    return (
        f"{size}: 1 image per rank x ({smallest} / {stride})^2 cells = 1 value per channel, which "
        "has no variance for BatchNorm; use at least 2 images per rank, or sizes of at least "
        f"{2 * stride}"
    )
