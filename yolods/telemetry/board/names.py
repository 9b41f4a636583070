"""The names of curves in TensorBoard, whose first part is the group that a curve is found in.

TensorBoard sorts groups by their ASCII characters and opens the first two. What people look for
first therefore has a capital letter: `Loss` and `Metrics` come first and are open.
"""

from __future__ import annotations

BY_IMAGES = "by_images"
"""The group of curves over the number of images, which runs with other batches have in common."""

_MOVED = {
    "epoch": "data/epoch",
    "optim/loss_scale": "stability/loss_scale",
    "optim/skipped_share": "stability/skipped_share",
    "time/data_share": "data/wait_share_of_step",
    "time/images_per_second": "data/images_per_second",
    "time/images_per_second_epoch": "data/images_per_second_of_epoch",
}
_ROOMS = {
    "lr": "optimizer/lr_{}",
    "metrics": "Metrics/{}",
    "optim": "optimizer/{}",
    "train": "Loss/{}_train",
    "val": "Loss/{}_val",
}


def board_tag(name: str) -> str:
    """A curve's tag: `train/box_loss` is `Loss/box_train`, beside `Loss/box_val`.

    Args:
        name: as in the step's record and in results.csv; other names stay as they are.
    """
    if name in _MOVED:
        return _MOVED[name]
    room, _, rest = name.partition("/")
    if room not in _ROOMS:
        return name
    return _ROOMS[room].format(rest.removesuffix("(B)").removesuffix("_loss"))


def image_tag(name: str) -> str | None:
    """The tag of a loss or a metric over the number of images; None for any other curve."""
    group, _, rest = board_tag(name).partition("/")
    return {"Loss": f"{BY_IMAGES}/loss_{rest}", "Metrics": f"{BY_IMAGES}/{rest}"}.get(group)


def picture_tag(name: str) -> str:
    """The tag of a picture: `train/batch0` is `images/train_batch0`."""
    return f"images/{name.replace('/', '_')}"
