"""Our detection loss beside ultralytics': the same numbers, in how much memory and how much time.

    python benchmarks/loss.py --record benchmarks/loss.md

On the CPU, one thread, no processes; minutes. Exit status 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.loss_batches import (
    CPU,
    KINDS,
    Apart,
    Theirs,
    compare,
    draw,
    head_of,
    labels,
    ours,
    outputs,
    plain,
)
from benchmarks.loss_memory import LiveBytes
from benchmarks.report import Spread
from yolods import compat
from yolods.model.anchors import anchors_of
from yolods.model.loss.assigner import assign
from yolods.model.loss.targets import targets_of

BATCHES = 500
CLOSE = 1e-6
"""Largest relative difference where sums have another order."""
BOXES = (10, 100, 300)
SHARE = {100: 0.5}
"""Of ultralytics' peak, by boxes of an image."""
SPEEDS = ((160, 9), (640, 3))
"""Pixels of an image, and rounds."""
SPEED_BOXES = (0, 5, 20, 100, 300)
CLASSES = 80

METHOD = f"""\
- **Numbers**: {BATCHES} random batches of 1 to 6 images of 64 to 320 pixels a side, 1 to 80 classes, up to 300 boxes an
  image, outputs in fp32 and, every third, in bf16, with and without class weights, most with images that have no boxes.
  *small*: sides below most strides; *points*: width, height or both 0; *outside*: wholly or partly beyond the borders;
  *duplicates*: each box four times; *none*: no box in the batch. Compared are the three items, and the gradients of
  both outputs of (sum of items) x images, by the largest difference over the largest value. *Host*: sums over the
  anchors that have a box, as ultralytics adds them. *Device*: the same code with the fixed sizes that a device gets,
  where zeros are added up too, which changes the order of sums; run on the CPU.
- **Memory**: the most bytes alive at once in storages that operations have made, beyond outputs and labels; what a
  kernel takes for itself is not seen. 4 images of 640 pixels, {CLASSES} classes, fp32, every image with the same
  number of boxes. *Assignment*: ours from labels and decoded outputs to target scores, ultralytics' its assigner alone.
  *Loss*: forward and backward pass. Ours is the device's code, on the CPU.
- **Time**: CPU seconds of forward and backward pass, both losses by turns on the same 16 images, {CLASSES} classes,
  fp32; medians, and the ratio round by round. Above 1: ours is faster. Not measured on a GPU.
- Targets: on the host every bit is equal; by the device's code gradients and items within {CLOSE:g}; at most
  {SHARE[100]:g} x ultralytics' bytes at 100 boxes; the median ratio of times at least 1."""  # noqa: E501


@dataclass(frozen=True)
class Compared:
    """One random batch."""

    kind: str
    most: int
    host: Apart
    device: Apart


@dataclass(frozen=True)
class Peaks:
    """MiB at the peak for one number of boxes: (theirs, ours)."""

    boxes: int
    assignment: tuple[float, float]
    loss: tuple[float, float]


@dataclass(frozen=True)
class Times:
    """CPU seconds of every round."""

    pixels: int
    boxes: int
    theirs: list[float]
    ours: list[float]

    @property
    def ratio(self) -> Spread:
        """Theirs over ours."""
        return Spread.of(other / mine for other, mine in zip(self.theirs, self.ours, strict=True))


def numbers(count: int) -> list[Compared]:
    """Both losses on the first `count` random batches."""
    samples = (draw(seed) for seed in range(count))
    return [
        Compared(each.kind, each.most, compare(each), compare(each, exact=False))
        for each in samples
    ]


def peaks(boxes: int, *, images: int = 4, pixels: int = 640) -> Peaks:
    """Bytes of both losses for images with so many boxes."""
    torch.manual_seed(boxes)
    predictions = outputs(images, CLASSES, (pixels, pixels))
    batch = labels([boxes] * images, CLASSES, plain)
    head = head_of(CLASSES)
    other, mine = Theirs(head), ours(head, exact=False)
    return Peaks(
        boxes,
        (_their_assignment(other, predictions, batch), _our_assignment(predictions, batch)),
        (
            _peak(
                lambda: _pass(lambda: other(predictions, batch).sum(), predictions),
                predictions,
                batch,
            ),
            _peak(
                lambda: _pass(lambda: mine(predictions, batch, 1)[0], predictions),
                predictions,
                batch,
            ),
        ),
    )


def _their_assignment(loss: Theirs, predictions: dict[str, Any], batch: dict[str, Tensor]) -> float:
    given: list[Any] = []
    with loss.criterion.assigner.register_forward_pre_hook(
        lambda _, arguments: given.extend(arguments)
    ):
        loss(predictions, batch)
    return _peak(lambda: loss.criterion.assigner(*given), given)


def _our_assignment(predictions: dict[str, Any], batch: dict[str, Tensor]) -> float:
    head = head_of(CLASSES)
    shapes = tuple(tuple(level.shape[2:]) for level in predictions["feats"])
    anchors = anchors_of(shapes, tuple(head.stride.tolist()), CPU)
    probabilities = (
        predictions["scores"].detach().permute(0, 2, 1).reshape(-1, CLASSES).contiguous().sigmoid()
    )
    boxes = ours(head)._boxes(predictions["boxes"], anchors)

    def run() -> None:
        assign(
            probabilities,
            boxes,
            anchors,
            targets_of(batch, anchors, 16.0, CLASSES, CPU),
            exact=False,
        )

    return _peak(run, probabilities, boxes, batch, anchors.points, anchors.strides)


def _peak(work: Callable[[], Any], *there: Any) -> float:
    """MiB that `work` holds at its peak beyond what is `there`."""
    with LiveBytes() as bytes_:
        bytes_.leave_out(there)
        work()
    return bytes_.peak / 2**20


def _pass(loss: Callable[[], Tensor], predictions: dict[str, Any]) -> None:
    """Forward and backward; gradients are let go of."""
    torch.autograd.grad(loss(), (predictions["boxes"], predictions["scores"]))


def times(pixels: int, boxes: int, rounds: int, *, images: int = 16) -> Times:
    """CPU seconds of both losses by turns."""
    torch.manual_seed(boxes)
    predictions = outputs(images, CLASSES, (pixels, pixels))
    batch = labels([boxes] * images, CLASSES, plain)
    head = head_of(CLASSES)
    other, mine = Theirs(head), ours(head)
    found = Times(pixels, boxes, [], [])
    for _ in range(rounds):
        found.theirs.append(_seconds(lambda: other(predictions, batch).sum(), predictions))
        found.ours.append(_seconds(lambda: mine(predictions, batch, 1)[0], predictions))
    return found


def _seconds(loss: Callable[[], Tensor], predictions: dict[str, Any]) -> float:
    began = time.process_time()
    _pass(loss, predictions)
    return time.process_time() - began


def misses(
    compared: Sequence[Compared], memory: Sequence[Peaks], speed: Sequence[Times]
) -> list[str]:
    """What is not as it has to be; empty where all is well."""
    found = [
        f"a {each.kind} batch: {each.host.worst:.1e} apart" for each in compared if each.host.worst
    ]
    found += [
        f"a {each.kind} batch: {each.device.worst:.1e}"
        for each in compared
        if each.device.worst > CLOSE
    ]
    for each in memory:
        for name, (other, mine) in (("assignment", each.assignment), ("loss", each.loss)):
            if mine > SHARE.get(each.boxes, 1) * other:
                found.append(f"{name} with {each.boxes} boxes: {mine:.1f} of {other:.1f} MiB")
    return found + [
        f"{each.pixels} pixels, {each.boxes} boxes: slower"
        for each in speed
        if each.ratio.median < 1
    ]


def numbers_table(compared: Sequence[Compared]) -> list[str]:
    """A line for every kind of batch."""
    lines = [
        (
            "| boxes | batches | most an image | host: bits equal | device: gradients' bits equal "
            "| device: items apart |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in dict.fromkeys(KINDS):
        mine = [each for each in compared if each.kind == kind]
        if mine:
            equal = sum(not each.host.worst for each in mine)
            gradients = sum(not (each.device.boxes or each.device.scores) for each in mine)
            apart = max(each.device.items for each in mine)
            most = max(each.most for each in mine)
            lines.append(f"| {kind} | {len(mine)} | {most} | {equal} | {gradients} | {apart:.1e} |")
    return lines


def memory_table(memory: Sequence[Peaks]) -> list[str]:
    """A line for every number of boxes."""
    lines = [
        (
            "| boxes an image | assignment: ultralytics, ours, MiB | share | loss: ultralytics, "
            "ours, MiB | share |"
        )
    ]
    lines.append("| ---: " * 5 + "|")
    for each in memory:
        cells = [
            f"{other:.1f}, {mine:.1f} | {mine / other:.2f}"
            for other, mine in (each.assignment, each.loss)
        ]
        lines.append(f"| {each.boxes} | {' | '.join(cells)} |")
    return lines


def speed_table(speed: Sequence[Times]) -> list[str]:
    """A line for every size and number of boxes."""
    lines = ["| pixels | boxes an image | ultralytics, s | ours, s | ratio |", "| ---: " * 5 + "|"]
    for each in speed:
        other, mine = (Spread.of(seconds).text(3) for seconds in (each.theirs, each.ours))
        lines.append(f"| {each.pixels} | {each.boxes} | {other} | {mine} | {each.ratio.text(2)} |")
    return lines


def main() -> int:
    """Print the tables, and write them where `--record` says; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="a markdown file to write")
    parser.add_argument(
        "--batches",
        type=int,
        default=BATCHES,
        help="random batches to compare (default: %(default)s)",
    )
    options = parser.parse_args()
    compat.prepare()  # before ultralytics is imported
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without this DeepSpeed looks for a device
    from benchmarks.hardware import describe

    torch.set_num_threads(1)
    facts = describe([0])
    compared, text = numbers(options.batches), []
    print("\n".join(numbers_table(compared)), flush=True)
    memory = [peaks(boxes) for boxes in BOXES]
    print("\n".join(memory_table(memory)), flush=True)
    speed = [times(pixels, boxes, rounds) for pixels, rounds in SPEEDS for boxes in SPEED_BOXES]
    print("\n".join(speed_table(speed)), flush=True)
    missed = misses(compared, memory, speed)
    verdict = (
        "Targets missed:\n" + "\n".join(f"- {each}" for each in missed)
        if missed
        else "All targets are met."
    )
    print(verdict)
    if options.record:
        command = (
            f"`python benchmarks/loss.py --record {options.record}`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}."
        )
        text = [
            "# The detection loss beside ultralytics'",
            "",
            command,
            "",
            *facts,
            "",
            METHOD,
            "",
            verdict,
            "",
        ]
        text += [
            "## Numbers",
            "",
            *numbers_table(compared),
            "",
            "## Memory",
            "",
            *memory_table(memory),
            "",
        ]
        text += ["## Time", "", *speed_table(speed)]
        options.record.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
