"""Videos from the data yaml to a trained detector: right labels, mAP, and what packing costs.

    python benchmarks/video_training.py --record benchmarks/video_training.md

All videos are made here. Exit status 1 if a target is missed. Five minutes on two cores; nothing is
written outside the record and a temporary folder.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks.hardware import describe
from tests.clips import make_clips, numbered_clip, told_number, with_splits
from tests.videos import cut, shown_number
from yolods.data.index.checks import scan_workers
from yolods.data.index.image_files import CheckOptions
from yolods.data.pack.sample import frame_of
from yolods.data.scan import Scan, scan
from yolods.data.spec import read_spec
from yolods.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = (("folder", 0), ("beside", 1), ("cvat", 0), ("sequence", 1))
SUFFIXES = (".mp4", ".avi", ".webm")
NUMBERED, STRIDE = 150, 4
LIMIT, EPOCHS, IMGSZ = 0.7, 20, 160
CLIPS = {"a.mp4": 150, "b.mp4": 150, "c.mp4": 60}
SHAPE = (128, 160)
COST_FRAMES, COST_SHAPE = 300, (720, 1280)

METHOD = f"""\
- *Numbers*: twelve videos ({", ".join(SUFFIXES)}) of {NUMBERED} frames, labelled in each of the
  four layouts. Every frame shows its number, and its box tells it. The packed frames of the
  training split (`stride: {STRIDE}`) and of the same videos as a validation split are compared with
  their identities and their boxes. Two more videos are wrong: one is cut off before its index, one
  has a label past its last frame; the yaml with them has to be refused with one line for each.
- *Training*: three videos of {SHAPE[1]}x{SHAPE[0]} pixels
  ({", ".join(map(str, CLIPS.values()))} frames), in which a square, a disc and a triangle cross a
  ground of each video's own;
  `split: {{val: 0.34, by: video}}` makes one of them the validation set. One command:
  `yolods launch train --data clips.yaml --model yolov5n --imgsz {IMGSZ} --epochs {EPOCHS}`, from
  random weights, on two CPU ranks. Target: mAP50 of at least {LIMIT}.
- *Cost*: a video of {COST_FRAMES} frames of {COST_SHAPE[1]}x{COST_SHAPE[0]} (MPEG-4, moving noise)
  is packed into the cache; CPU seconds are those of the process with all its threads. The second
  start finds the pack."""


@dataclass
class Outcome:
    """What was measured, and what was wrong."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self, good: bool, text: str) -> None:
        """Note a line, and a fault unless it is good."""
        self.lines.append(f"- {text}")
        print(text, flush=True)
        if not good:
            self.faults.append(text)


def opened(yaml: Path, split: str) -> Scan:
    """A split as a run opens it."""
    cache, options = Path(os.environ["YOLODS_CACHE"]) / "index", CheckOptions(scan_workers(1))
    return scan(read_spec(yaml), split, cache=cache, options=options)


def right_frames(found: Scan) -> Iterator[bool]:
    """For each sample, whether picture, identity and box say the same number."""
    for row, identity in enumerate(found.index.ids):
        number = frame_of(identity)[1]
        box = found.index.columns["box"][found.index.boxes_of(row)[0]]
        yield shown_number(found.source.read(row)) == number == told_number(box)


def numbers(folder: Path, outcome: Outcome) -> None:
    """Compare frames with their labels, and look whether faulty videos are named."""
    for suffix in SUFFIXES:
        for layout, base in LAYOUTS:
            name = f"{layout}{suffix.replace('.', '-')}{suffix}"
            numbered_clip(folder / "all/videos" / name, NUMBERED, layout, base)
    other = numbered_clip(folder / "one/videos/other.mp4", 20)
    text = f"names: [a]\nstride: {STRIDE}\n"
    for name, train, val in (("thin", "all", "one"), ("whole", "one", "all")):
        yaml = folder / f"{name}.yaml"
        yaml.write_text(f"train: {train}/videos\nval: {val}/videos\n{text}")
        split = "train" if train == "all" else "val"
        right = list(right_frames(opened(yaml, split)))
        each = len(range(0, NUMBERED, STRIDE if split == "train" else 1))
        outcome.check(
            sum(right) == len(right) == 12 * each,
            f"{split} of 12 videos: {sum(right)} of {len(right)} frames show the number that their "
            f"identity and their box tell ({12 * each} expected)",
        )
    cut(other, folder / "all/videos/cut.mp4")
    numbered_clip(folder / "all/videos/past.mp4", 9, base=0)
    (folder / "all/labels/past/000009.txt").write_text("0 .5 .5 .1 .1\n")
    (folder / "all/labels/cut.txt").write_text("1,1,10,10,20,20,1,1,1\n")
    try:
        opened(folder / "thin.yaml", "train")
        said: list[str] = []
    except UserError as error:
        said = str(error).replace(f"{folder}/all/", "").splitlines()
    outcome.check(len(said) == 2, f"two faulty videos beside them: {' / '.join(said)}")


def training(folder: Path, outcome: Outcome) -> None:
    """Train on two videos and validate on a third by one command."""
    yaml = with_splits(
        make_clips(folder / "clips", CLIPS, SHAPE),
        "videos: videos\nsplit: {val: 0.34, by: video}\n",
    )
    words = [sys.executable, "-m", "yolods", "launch", "train", "--data", str(yaml)]
    words += ["--model", "yolov5n", "--imgsz", str(IMGSZ), "--epochs", str(EPOCHS)]
    words += ["--workers", "0", "--noplots", "--project", "runs", "--name", "video"]
    began = time.monotonic()
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=900)
    seconds = time.monotonic() - began
    if done.returncode:
        outcome.check(False, f"the training ended with {done.returncode}: {done.stdout[-2000:]}")
        return
    with open(folder / "runs/video/results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["metrics/mAP50(B)"]) for row in rows]
    names = [path.name for path in read_spec(yaml).videos("val")]
    outcome.check(
        max(scores) >= LIMIT,
        f"trained in {seconds:.0f} s with packing and validation ({', '.join(names)} validates): "
        f"best mAP50 {max(scores):.3f} of {len(scores)} epochs, last {scores[-1]:.3f}",
    )


def cost(folder: Path, outcome: Outcome) -> None:
    """Pack frames of 720p."""
    videos, labels = folder / "cost/videos", folder / "cost/labels"
    for name, frames in (("a.mp4", COST_FRAMES), ("b.mp4", 10)):
        moving_noise(videos / name, frames)
        labels.mkdir(exist_ok=True)
        (labels / name).with_suffix(".txt").write_text("1,1,300,300,90,90,1,1,1\n")
    for stride in (1, 10):
        yaml = folder / f"cost-{stride}.yaml"
        text = "train: cost/videos/a.mp4\nval: cost/videos/b.mp4\nnames: [a]\n"
        yaml.write_text(f"{text}stride: {stride}\n")
        wall, cpu = time.perf_counter(), time.process_time()
        found = opened(yaml, "train")
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = float(np.mean(found.index.columns["size"]))
        again = time.perf_counter()
        opened(yaml, "train")
        again = time.perf_counter() - again
        outcome.check(
            True,
            f"stride {stride}: {len(found.labels)} of {COST_FRAMES} frames packed in {wall:.1f} s "
            f"and {cpu:.1f} CPU seconds ({COST_FRAMES / cpu:.0f} frames of the video per CPU "
            f"second), {size / 1000:.0f} kB each; the next start takes {1000 * again:.0f} ms",
        )


def moving_noise(path: Path, frames: int) -> None:
    """A video whose window moves over one large picture of noise of several scales."""
    (height, width), random = COST_SHAPE, np.random.default_rng(frames)
    image = np.full((height + frames, width + frames, 3), 110, np.float32)
    for cell, strength in ((240, 60), (80, 35), (24, 20), (8, 9), (3, 4)):
        shape = (image.shape[0] // cell + 2, image.shape[1] // cell + 2, 3)
        noise = random.standard_normal(shape, np.float32)
        image += strength * cv2.resize(noise, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    image = image.clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, (width, height))
    for k in range(frames):
        writer.write(np.ascontiguousarray(image[k : k + height, k : k + width]))
    writer.release()


def main() -> int:
    """Print what was found, and write it where `--record` says; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="a markdown file to write")
    options = parser.parse_args()
    machine, parts = describe(sorted(os.sched_getaffinity(0))), []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"YOLODS_CACHE": f"{scratch}/cache", "PYTHONPATH": str(ROOT)}
        for title, part in (("Numbers", numbers), ("Training", training), ("Cost", cost)):
            parts.append((title, Outcome()))
            part(Path(scratch), parts[-1][1])
    faults = [fault for _, outcome in parts for fault in outcome.faults]
    verdict = f"Missed: {'; '.join(faults)}" if faults else "All targets are met."
    print(verdict)
    if options.record:
        date = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        command = f"`python benchmarks/video_training.py --record {options.record}`, {date}."
        head = ["# Training on videos", "", command, "", *machine, "", METHOD, "", verdict]
        body = [line for title, each in parts for line in ("", f"## {title}", "", *each.lines)]
        options.record.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
