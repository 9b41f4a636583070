"""Do mosaic partners out of a block of 8 cost accuracy? Detectors with either kind, over seeds.

    python benchmarks/partners.py --seeds 3 --epochs 60 --imgsz 320 --record benchmarks/partners.md

Both kinds of a seed begin with the same weights and see the same images in the same order; only the
partners differ. Judged are best.pt and last.pt, by ultralytics' validator. Results are appended to
--work/results.jsonl, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import quality
from benchmarks import quality_report as report
from benchmarks.cases import Case
from benchmarks.hardware import describe
from benchmarks.quality_run import Job, Plan, import_all
from yolods.errors import UserError

KINDS = {
    kind: Case(kind, f"mosaic_partners={kind}", "zero1_fp32.json") for kind in ("all", "block")
}
METRIC = report.JUDGED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--data",
        action="append",
        metavar="NAME=YAML",
        help="a set; repeat it (default: demo, and bccd where it is)",
    )
    numbers = {"seeds": 3, "epochs": 60, "imgsz": 320, "batch-size": 16}
    for name, default in numbers.items():
        made.add_argument(
            f"--{name}", type=int, default=default, metavar="N", help=f"default {default}"
        )
    made.add_argument("--model", default="yolov5n", metavar="NAME", help="default yolov5n")
    made.add_argument("--cores", type=int, metavar="N", help="runs at once (default: all cores)")
    made.add_argument(
        "--work",
        type=Path,
        default=Path("runs/partners"),
        metavar="DIR",
        help="default runs/partners",
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the table there")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Train, compare, and return the exit status: 1 where runs failed, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    if min(options.seeds, options.epochs, options.imgsz, options.batch_size) < 1:
        parser().error("--seeds, --epochs, --imgsz and --batch-size have to be at least 1")
    if any(os.environ.get(name) != value for name, value in quality.VARIABLES.items()):
        variables = {**os.environ, **quality.VARIABLES}
        os.execve(sys.executable, [sys.executable, __file__, *words], variables)
    began = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    try:
        failed = train(options)
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lines = quality.read_results(options.work / quality.RESULTS)
    text = compared(lines)
    print("\n" + "\n".join(text))
    if options.record is not None:
        command = shlex.join(["python", "benchmarks/partners.py", *words])
        machine = describe(list(range(cores_of(options))))
        head = [f"# Mosaic partners, {began}", "", f"    {command}", "", *machine, ""]
        options.record.write_text("\n".join([*head, *text]) + "\n", encoding="utf-8")
    return int(bool(failed))


def cores_of(options: argparse.Namespace) -> int:
    """Runs at once."""
    return options.cores or len(os.sched_getaffinity(0))


def train(options: argparse.Namespace) -> list[Job]:
    """Make the runs that are missing; returns those that failed.

    Raises:
        UserError: a set is not there, or the results are of other settings.
        RuntimeError: too many runs have failed.
    """
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["YOLODS_CACHE"] = str(work / "cache")
    results = quality.Results(work / quality.RESULTS, quality.settings_of(options))
    shutil.rmtree(work / "running", ignore_errors=True)
    model = quality.model_file(options.model, work)
    hyper = results.settings["hyper"]
    plan = Plan(work, model, options.imgsz, options.batch_size, options.epochs, hyper)
    import_all()
    sets = quality.copies(options.data, work)
    jobs = [
        Job(case, name, sets[name], seed, {"mosaic_partners": kind})
        for seed in range(options.seeds)
        for kind, case in KINDS.items()
        for name in sets
    ]
    todo = [job for job in jobs if (job.case.key, job.set, job.seed) not in results.done]
    print(f"{len(todo)} of {len(jobs)} runs are to be made", flush=True)
    return quality.Pool(plan, results, todo, cores_of(options), KINDS).work()


def compared(lines: Sequence[dict[str, Any]]) -> list[str]:
    """A table per set: the metric of every seed with either kind, and how far the means are
    apart."""
    text = []
    for name in sorted({line["set"] for line in lines}):
        text += [f"## {name}: {METRIC}", "", "| weights | seed | all | block | difference |"]
        text += ["| --- | --- | ---: | ---: | ---: |"]
        for weights, metric in (("best.pt", METRIC), ("last.pt", report.LAST + METRIC)):
            text += rows(weights, *(report.by_seed(lines, kind, name, metric) for kind in KINDS))
        text.append("")
    return text[:-1]


def rows(weights: str, of_all: dict[int, float], of_block: dict[int, float]) -> list[str]:
    """A row per seed that has both kinds, and the means with the difference's standard error."""
    seeds = sorted(of_all.keys() & of_block.keys())
    if not seeds:
        return []
    made = [
        f"| {weights} | {seed} | {of_all[seed]:.4f} | {of_block[seed]:.4f} | "
        f"{of_block[seed] - of_all[seed]:+.4f} |"
        for seed in seeds
    ]
    means = [statistics.mean(values[seed] for seed in seeds) for values in (of_all, of_block)]
    apart = report.difference(of_block, of_all)
    error = f" +- {apart.paired_error:.4f}" if len(seeds) > 1 else ""
    made.append(
        f"| {weights} | **mean** | {means[0]:.4f} | {means[1]:.4f} | {apart.mean:+.4f}{error} |"
    )
    return made


if __name__ == "__main__":
    sys.exit(main())
