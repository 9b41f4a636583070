"""What an image size has to be for a model and a batch, with the arithmetic."""

from __future__ import annotations


def size_fault(imgsz: int, stride: int, model: str, source: str) -> str | None:
    """What is wrong with a size that would leave part of a cell at the border.

    Args:
        imgsz: pixels.
        stride: the model's largest, in pixels.
        model: what it is called in the message.
        source: what gave the size: "--imgsz".
    """
    if imgsz % stride == 0:
        return None
    below = max(imgsz // stride, 1) * stride
    return f"{source} {imgsz}: {model} needs a multiple of {stride}; use {below} or {below + stride}"


def drawn_between(imgsz: int, multi_scale: float, stride: int) -> tuple[int, int]:
    """From which side in pixels to below which one `multi_scale` draws, before it is cut to a multiple of `stride`."""
    return max(stride, int(imgsz * (1 - multi_scale))), int(imgsz * (1 + multi_scale) + stride)


def single_value_fault(
    imgsz: int, stride: int, micro_batch: int, *, multi_scale: float = 0.0, ranks: int = 1
) -> str | None:
    """What is wrong where BatchNorm would have one value per channel, of which there is no variance.

    Args:
        imgsz: pixels; a multiple of `stride`.
        stride: the model's largest, in pixels.
        micro_batch: images per rank and forward pass.
        multi_scale: share of imgsz by which the size varies.
        ranks: those that share their statistics.
    """
    smallest = drawn_between(imgsz, multi_scale, stride)[0] // stride * stride if multi_scale else imgsz
    cells = smallest // stride
    if micro_batch * ranks * cells * cells != 1:
        return None
    size = f"--imgsz {imgsz}" + (f" with multi_scale {multi_scale:g}, down to {smallest}" if multi_scale else "")
    return (
        f"{size}: 1 image per rank x ({smallest} / {stride})^2 cells = 1 value per channel, of which BatchNorm has no "
        f"variance; use at least 2 images per rank, or sizes of {2 * stride} and up"
    )
