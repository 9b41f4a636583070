"""A whole training run with faults in it, beside the same run without, and beside stock DeepSpeed on the same tape.

    python benchmarks/faulted.py --data ../shared/data/bccd/bccd.yaml --record benchmarks/faulted.md

One line a run while it goes on, then a table. Nothing outside the record and a temporary folder is written.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drive_faulted import EVERY
from benchmarks.hardware import describe

HERE = Path(__file__).resolve().parent
SHOWN_LINES = 3
LIMIT = 7200.0
"""Seconds after which a run counts as hung."""

METHOD = """\
The same recipe each time. With faults, every so many optimizer steps the next fault of a tape drawn from
(convolution x rank x micro-batch x kind) is put in: inf or nan in one element of a layer's output, of its gradient, of
a parameter's gradient or of an image, or a gradient 1e7 times too large. *stock* is DeepSpeed's own handling
(`"overflow": {"handling": "stock"}`) on the same tape; it skips what it sees and restores nothing."""


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    name: str
    map50: float | None
    strict: float | None
    epochs: int
    events: Counter[str]
    seconds: float
    last_words: str


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the command line says. Returns the exit status: 1 if the run with faults fell behind."""
    words = list(sys.argv[1:] if argv is None else argv)
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--data", default="demo", metavar="YAML", help="data yaml, or demo (default)")
    made.add_argument("--model", default="yolov5n", metavar="NAME", help="of the zoo (default yolov5n)")
    made.add_argument("--imgsz", type=int, default=320, metavar="PX", help="image size (default 320)")
    made.add_argument("--epochs", type=int, default=10, metavar="N", help="of each run (default 10)")
    made.add_argument("--batch-size", type=int, default=4, metavar="N", help="images a step, all ranks (default 4)")
    made.add_argument("--ranks", type=int, default=2, metavar="N", help="gloo ranks (default 2)")
    made.add_argument("--every", type=int, default=50, metavar="N", help="steps from fault to fault (default 50)")
    made.add_argument("--seeds", type=int, default=1, metavar="N", help="of the clean run and of ours (default 1)")
    made.add_argument("--deepspeed_config", type=Path, default=HERE.parent / "ds_configs" / "zero2_fp32.json")
    made.add_argument("--limit", type=float, default=0.03, metavar="X", help="largest loss of mAP50 (default 0.03)")
    made.add_argument("--record", type=Path, metavar="MD", help="write the result to this file")
    options = made.parse_args(words)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    work = Path(tempfile.mkdtemp(prefix="yolods-faulted-"))
    try:
        clean = [_train("clean", options, work, seed=seed) for seed in range(options.seeds)]
        own = [_train("with faults", options, work, seed=seed, every=options.every) for seed in range(options.seeds)]
        stock = _train("with faults, stock", options, work, every=options.every, handling="stock")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = [*clean, *own, stock]
    behind = _mean(clean) - _mean(own)
    met = behind <= options.limit
    command = shlex.join(["python", "benchmarks/faulted.py", *words])
    text = "\n".join(
        [
            *(f"# Training with faults, {date}", "", f"    {command}", ""),
            *describe(sorted(os.sched_getaffinity(0))),
            f"- {options.model} at {options.imgsz} px, {Path(options.data).name}, {options.epochs} epochs, "
            f"{options.batch_size} images a step on {options.ranks} ranks, {options.deepspeed_config.name}, "
            f"a fault every {options.every} steps",
            *("", METHOD, ""),
            *("| run | mAP50 | mAP50-95 | epochs | events | seconds |", "| --- | ---: | ---: | ---: | --- | ---: |"),
            *map(_row, found),
            "",
            f"Mean mAP50: clean {_mean(clean):.3f} ({_spread(clean)}), with faults {_mean(own):.3f} ({_spread(own)}): "
            f"{behind:+.3f} behind. The target, at most {options.limit:g} behind, is {'met' if met else 'missed'}.",
            *(f"\n{each.name} ended with: {each.last_words}" for each in found if each.last_words),
        ]
    )
    print(text)
    if options.record:
        options.record.write_text(text + "\n", encoding="utf-8")
    return 0 if met else 1


def _mean(results: Sequence[Result]) -> float:
    return sum(each.map50 or 0.0 for each in results) / len(results)


def _spread(results: Sequence[Result]) -> str:
    scores = [each.map50 or 0.0 for each in results]
    return f"{min(scores):.3f}..{max(scores):.3f}"


def _train(
    name: str, options: argparse.Namespace, work: Path, *, seed: int = 0, every: int = 0, handling: str = "own"
) -> Result:
    settings = json.loads(options.deepspeed_config.read_text(encoding="utf-8"))
    settings["yolods"] = {**settings.get("yolods", {}), "overflow": {"handling": handling}}
    file = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    words = ["launch", "train", "--data", str(options.data), "--model", options.model, "--imgsz", str(options.imgsz)]
    words += ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size), "--workers", "0"]
    words += ["--deepspeed_config", str(file), "--project", str(work), "--name", file.stem]
    words += [
        "--set",
        f"nbs={options.batch_size}",
        "--set",
        "plots=false",
        "--set",
        f"seed={seed}",
        "--num_gpus",
        str(options.ranks),
    ]
    began = time.monotonic()
    with (work / f"{file.stem}.log").open("w+", encoding="utf-8", errors="replace") as log:
        code = subprocess.run(
            [sys.executable, str(HERE / "drive_faulted.py"), *words],
            env={**os.environ, EVERY: str(every), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        ).returncode
        log.seek(0)
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    result = _read(
        name if options.seeds == 1 else f"{name}, seed {seed}",
        work / file.stem,
        time.monotonic() - began,
        "" if code == 0 else lines[-SHOWN_LINES:],
    )
    print(_row(result), flush=True)
    return result


def _read(name: str, folder: Path, seconds: float, last_words: Sequence[str]) -> Result:
    rows = []
    if (folder / "results.csv").is_file():
        with (folder / "results.csv").open(encoding="utf-8") as file:
            rows = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    best = max((float(row["metrics/mAP50(B)"]), float(row["metrics/mAP50-95(B)"])) for row in rows) if rows else None
    events: Counter[str] = Counter()
    if (folder / "stability.jsonl").is_file():
        for line in (folder / "stability.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            events[f"{event['cause']} -> {event['action']}"] += 1
    return Result(
        name, best[0] if best else None, best[1] if best else None, len(rows), events, seconds, " / ".join(last_words)
    )


def _row(result: Result) -> str:
    score = "-" if result.map50 is None else f"{result.map50:.3f}"
    strict = "-" if result.strict is None else f"{result.strict:.3f}"
    events = ", ".join(f"{key} {count}" for key, count in sorted(result.events.items())) or "none"
    return f"| {result.name} | {score} | {strict} | {result.epochs} | {events} | {result.seconds:.0f} |"


if __name__ == "__main__":
    sys.exit(main())
