"""A whole training run with faults in it, beside the same run without, and beside stock DeepSpeed on the same tape.

    python benchmarks/faulted.py --data ../shared/data/bccd/bccd.yaml --record benchmarks/faulted.md
    python benchmarks/faulted.py --data ... --record benchmarks/faulted.md --seeds 1 2 --runs clean faults

One line a run while it goes on, then a table. Runs that are not repeated keep their rows in the
record. Nothing outside the record and a temporary folder is written.
"""  # noqa: E501

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.drive_faulted import EVERY
from benchmarks.hardware import describe
from benchmarks.joined import RUN, joined

HERE = Path(__file__).resolve().parent
SHOWN_LINES = 3
LIMIT = 7200.0
"""Seconds after which a run counts as hung."""

CLEAN, FAULTS = "clean", "with faults"
RUNS = ("clean", "faults", "stock")
COLUMNS = ("run", "mAP50", "mAP50-95", "epochs", "events", "seconds", "run of")

METHOD = """\
The same recipe each time, and for runs that are compared the same seed. With faults, every so many optimizer steps the
next fault of a tape, the same for all seeds, is put in. It is drawn from
(convolution x rank x micro-batch x kind): inf or nan in one element of a layer's output, of its gradient, of
a parameter's gradient or of an image, or a gradient 1e7 times too large. *stock* is DeepSpeed's own handling
(`"overflow": {"handling": "stock"}`) on the same tape; it skips what it sees and restores nothing."""  # noqa: E501


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
    """Train as the command line says. Returns the exit status: 1 if the run with faults fell
    behind."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    before = (
        options.record.read_text(encoding="utf-8")
        if options.record and options.record.exists()
        else ""
    )
    section = [
        f"{RUN}{date}",
        "",
        f"    {shlex.join(['python', 'benchmarks/faulted.py', *words])}",
        "",
    ]
    section += [
        *describe(sorted(os.sched_getaffinity(0))),
        f"- {options.model} at {options.imgsz} px, {Path(options.data).name}, {options.epochs} "
        f"epochs, {options.batch_size} images a step on {options.ranks} ranks, "
        f"{options.deepspeed_config.name}, a fault every {options.every} steps",
    ]
    text, rows = "", []
    work = Path(tempfile.mkdtemp(prefix="yolods-faulted-"))
    try:
        for result in _runs(options, work):
            rows.append([*_cells(result), date])
            if result.last_words:
                section += ["", f"{result.name} ended with: {result.last_words}"]
            text = merged(before, rows, "\n".join(section), options.limit)
            if options.record:  # after each run, so that a later failure loses nothing
                options.record.write_text(text, encoding="utf-8")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(text)
    apart = differences(joined(before, rows, "")[0])
    return 0 if apart and statistics.mean(apart.values()) >= -options.limit else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--data", default="demo", metavar="YAML", help="data yaml, or demo (default)"
    )
    parser.add_argument(
        "--model", default="yolov5n", metavar="NAME", help="of the zoo (default yolov5n)"
    )
    parser.add_argument(
        "--imgsz", type=int, default=320, metavar="PX", help="image size (default 320)"
    )
    parser.add_argument(
        "--epochs", type=int, default=10, metavar="N", help="of each run (default 10)"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="images a step, all ranks (default 4)",
    )
    parser.add_argument("--ranks", type=int, default=2, metavar="N", help="gloo ranks (default 2)")
    parser.add_argument(
        "--every", type=int, default=50, metavar="N", help="steps from fault to fault (default 50)"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="of all runs (default 0)"
    )
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=RUNS, help="of each seed (default: all)"
    )
    parser.add_argument(
        "--deepspeed_config", type=Path, default=HERE.parent / "ds_configs" / "zero2_fp32.json"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=0.03,
        metavar="X",
        help="largest loss of mAP50 (default 0.03)",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="MD",
        help="write the result to this file, among what is in it",
    )
    return parser


def _runs(options: argparse.Namespace, work: Path) -> Iterator[Result]:
    for seed in options.seeds:
        if "clean" in options.runs:
            yield _train(CLEAN, options, work, seed=seed)
        if "faults" in options.runs:
            yield _train(FAULTS, options, work, seed=seed, every=options.every)
        if "stock" in options.runs:
            yield _train(
                f"{FAULTS}, stock", options, work, seed=seed, every=options.every, handling="stock"
            )


def merged(before: str, rows: Sequence[Sequence[str]], run: str, limit: float) -> str:
    """A record with new rows in it: see `joined`."""
    every, runs = joined(before, rows, run)
    every.sort(key=lambda row: int(row[0].rpartition("seed ")[2]))
    lines = [
        *("# Training with faults", "", METHOD, ""),
        f"| {' | '.join(COLUMNS)} |",
        "| --- | ---: | ---: | ---: | --- | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row in every),
        *("", *_verdict(differences(every), limit), "", "\n\n".join(runs), ""),
    ]
    return "\n".join(lines)


def differences(rows: Sequence[Sequence[str]]) -> dict[str, float]:
    """By seed: mAP50 of the run with faults less that of the clean one; without a score it is 0."""
    scores = {row[0]: 0.0 if row[1] == "-" else float(row[1]) for row in rows}
    seeds = [name.removeprefix(f"{CLEAN}, ") for name in scores if name.startswith(CLEAN)]
    both = [seed for seed in seeds if f"{FAULTS}, {seed}" in scores]
    return {seed: scores[f"{FAULTS}, {seed}"] - scores[f"{CLEAN}, {seed}"] for seed in both}


def _verdict(apart: dict[str, float], limit: float) -> list[str]:
    if not apart:
        return []
    mean = statistics.mean(apart.values())
    told = ", ".join(f"{seed} {each:+.3f}" for seed, each in apart.items())
    return [
        f"mAP50 with faults less that of the clean run: {told}; mean {mean:+.3f} of {len(apart)}.",
        "",
        f"- At most {limit:g} below the clean run (mean): {'met' if mean >= -limit else 'missed'}.",
        (
            f"- At most {limit:g} from it in either direction (mean): "
            f"{'met' if abs(mean) <= limit else 'missed'}."
        ),
    ]


def _train(
    name: str,
    options: argparse.Namespace,
    work: Path,
    *,
    seed: int = 0,
    every: int = 0,
    handling: str = "own",
) -> Result:
    settings = json.loads(options.deepspeed_config.read_text(encoding="utf-8"))
    settings["yolods"] = {**settings.get("yolods", {}), "overflow": {"handling": handling}}
    file = work / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    words = [
        "launch",
        "train",
        "--data",
        str(options.data),
        "--model",
        options.model,
        "--imgsz",
        str(options.imgsz),
    ]
    words += [
        "--epochs",
        str(options.epochs),
        "--batch-size",
        str(options.batch_size),
        "--workers",
        "0",
    ]
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
            env={
                **os.environ,
                EVERY: str(every),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(HERE.parent),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        ).returncode
        log.seek(0)
        lines = [line.strip() for line in log.read().splitlines() if line.strip()]
    result = _read(
        f"{name}, seed {seed}",
        work / file.stem,
        time.monotonic() - began,
        "" if code == 0 else lines[-SHOWN_LINES:],
    )
    print(" | ".join(_cells(result)), flush=True)
    return result


def _read(name: str, folder: Path, seconds: float, last_words: Sequence[str]) -> Result:
    rows = []
    if (folder / "results.csv").is_file():
        with (folder / "results.csv").open(encoding="utf-8") as file:
            rows = [
                {key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)
            ]
    best = (
        max((float(row["metrics/mAP50(B)"]), float(row["metrics/mAP50-95(B)"])) for row in rows)
        if rows
        else None
    )
    events: Counter[str] = Counter()
    if (folder / "stability.jsonl").is_file():
        for line in (folder / "stability.jsonl").read_text(encoding="utf-8").splitlines():
            event = json.loads(line)
            events[f"{event['cause']} -> {event['action']}"] += 1
    return Result(
        name,
        best[0] if best else None,
        best[1] if best else None,
        len(rows),
        events,
        seconds,
        " / ".join(last_words),
    )


def _cells(result: Result) -> list[str]:
    score = "-" if result.map50 is None else f"{result.map50:.3f}"
    strict = "-" if result.strict is None else f"{result.strict:.3f}"
    events = ", ".join(f"{key} {count}" for key, count in sorted(result.events.items())) or "none"
    return [result.name, score, strict, str(result.epochs), events, f"{result.seconds:.0f}"]


if __name__ == "__main__":
    sys.exit(main())
