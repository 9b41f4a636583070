"""The pictures of docs/inspection.md and the README: `python benchmarks/screenshots.py`.

It trains the demo and the same data under two more layouts, opens TensorBoard on them in a browser
without a screen, and writes docs/images/. With --runs FOLDER it takes runs that are there. Look at
the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.browser import find_browser, picture, tensorboard_on, why_no_browser  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SHORT = ("--data", "demo", "--model", "yolov5n", "--imgsz", "96", "--epochs", "10")
RUNS = {
    "demo": ("demo",),
    "zero2": ("train", *SHORT, "--batch-size", "16", "--set", "nbs=16"),
    "pipeline": ("train", *SHORT, "--batch-size", "16", "--set", "nbs=64"),
}
"""Words of each run; `zero2` and `pipeline` accumulate 1 and 4 batches per step."""
CONFIGS = {"zero2": "zero2_fp32", "pipeline": "pipeline2_fp32"}
PAGES = {
    "timeseries": ("?smoothing=0#timeseries", (1500, 1000)),
    "by_images": ("?smoothing=0&tagFilter=by_images/mAP#timeseries", (1500, 620)),
    "custom_scalars": ("#custom_scalars", (1500, 1000)),
    "hparams": ("#hparams", (1500, 360)),
    "images": ("#images&tagFilter=val_batch0_pred", (1280, 900)),
    # Not the layout: it names the host.
    "text": ("#text&tagFilter=Model", (1280, 700)),
    "pr_curves": ("#pr_curves", (1280, 800)),
}
"""Fragment of the address and size in pixels of each picture."""
COLOURS = 256
"""Colours of a picture's palette: enough for a screen, in half the bytes."""


def main(words: Sequence[str] | None = None) -> int:
    """Make all pictures; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder with the runs demo, zero2 and pipeline")
    parser.add_argument("--to", type=Path, default=IMAGES, help="folder of the pictures")
    args = parser.parse_args(words)
    if reason := why_no_browser():
        parser.error(reason)
    if args.runs is not None and not args.runs.is_dir():
        parser.error(f"--runs {args.runs}: no such folder")
    with tempfile.TemporaryDirectory() as scratch:
        runs = args.runs or _train(Path(scratch) / "runs")
        _screenshots(str(find_browser()), runs, args.to, Path(scratch))
        _shrink(run_picture(runs / "demo"), args.to / "run.png")
    return 0


def _train(folder: Path) -> Path:
    for name, words in RUNS.items():
        given = [*words, "--project", str(folder), "--name", name]
        if name in CONFIGS:
            given += ["--deepspeed_config", CONFIGS[name]]
        subprocess.run([sys.executable, "-m", "yolods", "launch", *given], cwd=ROOT, check=True)
    return folder


def _screenshots(browser: str, runs: Path, to: Path, scratch: Path) -> None:
    with tensorboard_on(runs, scratch / "log") as address:
        for name, (fragment, size) in PAGES.items():
            file = scratch / f"{name}.png"
            picture(browser, f"{address}{fragment}", scratch / "profile", file, size)
            with Image.open(file) as shown:
                _shrink(shown, to / f"tensorboard_{name}.png")


def run_picture(run: Path) -> Image.Image:
    """The curves of a run above four of its validation images with predicted boxes."""
    with Image.open(run / "results.png") as found:
        curves = found.convert("RGB")
    curves = curves.resize((1000, round(1000 * curves.height / curves.width)))
    with Image.open(run / "val_batch0_pred.jpg") as found:
        # A grid of four images per row; its first row.
        row = found.convert("RGB").crop((0, 0, found.width, found.height // 4))
    row = row.resize((1000, round(1000 * row.height / row.width)))
    joined = Image.new("RGB", (1000, curves.height + row.height), "white")
    joined.paste(curves, (0, 0))
    joined.paste(row, (0, curves.height))
    return joined


def _shrink(shown: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    shown.convert("RGB").quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    raise SystemExit(main())
