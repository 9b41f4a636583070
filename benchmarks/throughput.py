"""ultralytics' own trainer and yolods on the same data, model, image size, batch, threads and \
cores, taking turns.

    python benchmarks/throughput.py --record benchmarks/throughput.md --profile --map-seeds 3

One line a run while it goes on; then a table, which `--record` writes together with the machine,
the versions and the command. `--help` lists what can be chosen. Nothing outside the record and a
temporary folder is written.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import report
from benchmarks.cases import CASES, REFERENCE, Case, Settings, plan
from benchmarks.hardware import describe
from benchmarks.observer import TIMED_STEPS, TRACED_STEPS, WARM_STEPS, Seen
from yolods.errors import UserError

MAP_CASES = (REFERENCE, "fp32", "autocast", "bf16")
PROFILE_CASES = (REFERENCE, "fp32", "autocast", "bf16", "two-ranks")

METHOD = """\
Both trainers run in processes of their own, from random weights, with the same hyper-parameters: \
ultralytics' defaults
(AdamW by `optimizer=auto`, mosaic and the other augmentation, gradient clipping at 10, a moving \
average of the weights)
except that mosaic is not closed, warm-up takes one epoch, and pictures are not drawn. ultralytics \
is started as its
users start it on a CPU: fp32, channels-first, data loading in the training process. yolods loads \
its data in the
training process too, and is started by its launcher, whose settings for glibc's allocator are \
part of it; the case
`python -m yolods` goes without them. Two ranks take a batch each and accumulate half as many, so \
that a step sees as
many images (64, ultralytics' nominal batch) in every case.

- *images/s*: images of all training steps of the second epoch and later, over the wall time from \
the start of each of
  these epochs to the end of its last step. Data loading, augmentation, optimizer, moving average, \
progress bar and logs
  are in it; evaluation and the writing of weights are not. The same clock and the same moments in \
both trainers.
- *x ultralytics*: the rate over that of the ultralytics run just before it, on the same cores.
- *first step after*: from the start of the process, the launcher's included, to the end of the \
first optimizer step.
- *core busy*: CPU time over wall time while the rate was taken, the least of all rounds."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--data", default="demo", metavar="YAML", help="data yaml (copied first), or demo (default)"
    )
    made.add_argument(
        "--model", default="yolov5n", metavar="NAME", help="of the zoo (default yolov5n)"
    )
    made.add_argument(
        "--imgsz", type=int, default=320, metavar="PX", help="image size (default 320)"
    )
    made.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="images a rank (default 16)"
    )
    made.add_argument(
        "--threads", type=int, default=1, metavar="N", help="threads a rank (default 1)"
    )
    made.add_argument(
        "--cores", type=_cores, metavar="A,B", help="cores to use (default: the first 2 x threads)"
    )
    made.add_argument(
        "--rounds",
        type=int,
        default=3,
        metavar="N",
        help="times that every case is run (default 3)",
    )
    made.add_argument(
        "--epochs", type=int, default=3, metavar="N", help="of a run, at least 2 (default 3)"
    )
    words = [key for key in CASES if key != REFERENCE]
    made.add_argument(
        "--cases", nargs="+", choices=words, default=words, help="what to compare (default: all)"
    )
    made.add_argument(
        "--profile", action="store_true", help="also take a step apart, by part and by operator"
    )
    made.add_argument(
        "--map-seeds",
        type=int,
        default=0,
        metavar="N",
        help="also train with N seeds and compare mAP",
    )
    made.add_argument(
        "--map-epochs", type=int, default=12, metavar="N", help="of these trainings (default 12)"
    )
    made.add_argument(
        "--map-imgsz", type=int, default=192, metavar="PX", help="their image size (default 192)"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    made.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="work in this folder, and leave logs and data there",
    )
    return made


def _cores(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.epochs < 2 or options.rounds < 0:
        parser().error("--epochs has to be at least 2, and --rounds at least 0")
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both trainers would take a GPU
    work = options.keep or Path(tempfile.mkdtemp(prefix="yolods-benchmark-"))
    work.mkdir(parents=True, exist_ok=True)
    record = Record(options.record)
    try:
        measure(options, words, work.resolve(), record)
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if options.keep is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{record.text}")
    return 0


class Record:
    """The record so far; its file is up to date after every section, so that a later failure loses
    nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file, self.text = file, ""

    def add(self, lines: Sequence[str]) -> None:
        """Append a section."""
        self.text += ("\n" if self.text else "") + "\n".join(lines).strip() + "\n"
        if self._file is not None:
            self._file.write_text(self.text, encoding="utf-8")


def measure(options: argparse.Namespace, words: list[str], work: Path, record: Record) -> None:
    """Take all the measurements."""
    from benchmarks.copies import copy_of
    from yolods import compat
    from yolods.telemetry.log import quiet_dependencies

    os.environ["YOLODS_CACHE"] = str(work / "cache")
    compat.prepare()
    quiet_dependencies(logging.WARNING)
    cores = options.cores or available()[: 2 * options.threads]
    date, machine = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), describe(cores)
    data, images = copy_of(options.data, work)
    settings = Settings(
        data, images, options.model, options.imgsz, options.batch_size, options.threads, work
    )
    began = [
        f"# Throughput, {date}",
        "",
        f"    {shlex.join(['python', 'benchmarks/throughput.py', *words])}",
        "",
    ]
    if results := compare(options, settings, cores):
        record.add([*began, *machine, f"- {_workload(options, settings)}", "", METHOD])
        record.add(report.rate_table(results))
        if notes := [*report.scaling_lines(results), *report.doubts(results)]:
            record.add(notes)
    else:
        record.add([*began, *machine, f"- {_workload(options, settings)}"])
    if options.profile:
        record.add(take_apart(options, settings, cores))
    if options.map_seeds:
        record.add(compare_map(options, settings, cores))


def available() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _workload(options: argparse.Namespace, settings: Settings) -> str:
    return (
        f"workload: {settings.model} at {settings.imgsz} px, {settings.batch} images a batch and "
        f"rank, {settings.threads} thread{'s' * (settings.threads > 1)} a rank, "
        f"{'the demo data' if options.data == 'demo' else Path(options.data).name} with "
        f"{settings.images} training images, {options.epochs} epochs a run, rounds: "
        f"{options.rounds}"
    )


def compare(
    options: argparse.Namespace, settings: Settings, cores: list[int]
) -> list[report.Result]:
    """The rates: every case once a round, ultralytics before each that is compared with it."""
    from benchmarks.runs import carry_out

    order = plan(options.cases, len(cores), settings.threads)
    for key in set(options.cases) - {case.key for case in order}:
        needed = CASES[key].cores * settings.threads
        print(f"{key} is left out: it needs {needed} cores, and there are {len(cores)}", flush=True)
    print(
        f"{options.rounds * len(order)} runs of {options.epochs} epochs, one line each", flush=True
    )
    results: list[report.Result] = []
    for number in range(options.rounds):
        for place, case in enumerate(order):
            name = f"r{number}-{place}-{case.key}"
            began = time.monotonic()
            seen = carry_out(
                case,
                settings,
                cores,
                kind="rate",
                epochs=options.epochs,
                name=name,
                imgsz=settings.imgsz,
            )
            one = report.result(case.key, number, seen, settings.threads)
            results.append(one)
            say(
                f"round {number + 1}/{options.rounds}, run {place + 1}/{len(order)}",
                case,
                f"{one.rate:.2f} images/s, first step after {one.first_step:.1f} s, core busy "
                f"{one.busy:.0%}",
                began,
            )
    return results


def take_apart(options: argparse.Namespace, settings: Settings, cores: list[int]) -> list[str]:
    """Where a step's time goes, by part in each case and by operator."""
    from benchmarks.runs import carry_out

    step = max(settings.batch, 64)  # images, of ultralytics' nominal batch
    epochs = math.ceil((WARM_STEPS + TIMED_STEPS + TRACED_STEPS + 1) * step / settings.images) + 1
    profiles: dict[str, Seen] = {}
    for key in PROFILE_CASES:
        case, began = CASES[key], time.monotonic()
        if case.cores * settings.threads > len(cores):
            continue
        (profiles[key],) = carry_out(
            case,
            settings,
            cores,
            kind="profile",
            epochs=epochs,
            name=f"profile-{key}",
            imgsz=settings.imgsz,
        )
        say("profile", case, f"{profiles[key].split['total']:.1f} ms an image", began)
    lines = [
        "## Where a step's time goes",
        "",
        f"Milliseconds an image, a part's share in brackets, over {TIMED_STEPS} optimizer steps by "
        "a clock around each part; what happens between epochs is not in it. Of several ranks it "
        "is rank 0's time over the images of all, and waiting for the others counts as "
        "communication.",
        "",
        *report.split_table({key: seen.split for key, seen in profiles.items()}),
    ]
    for key, seen in profiles.items():
        lines += [
            "",
            f"{CASES[key].title}, by operator over {TRACED_STEPS} further steps under "
            "torch.profiler:",
            "",
        ]
        lines += report.operator_table(seen.operators)
    return lines


def compare_map(options: argparse.Namespace, settings: Settings, cores: list[int]) -> list[str]:
    """mAP after short trainings with several seeds."""
    from benchmarks.runs import carry_out

    scores: dict[str, list[dict[str, float]]] = {key: [] for key in MAP_CASES}
    for seed in range(options.map_seeds):
        for key in MAP_CASES:
            began = time.monotonic()
            (seen,) = carry_out(
                CASES[key],
                settings,
                cores,
                kind="map",
                epochs=options.map_epochs,
                name=f"map-{key}-{seed}",
                imgsz=options.map_imgsz,
                seed=seed,
            )
            scores[key].append(seen.metrics)
            say(f"seed {seed}", CASES[key], f"mAP50 {seen.metrics['metrics/mAP50(B)']:.3f}", began)
    return [
        "## mAP",
        "",
        f"best.pt on the validation images after {options.map_epochs} epochs at "
        f"{options.map_imgsz} px with seeds 0 to {options.map_seeds - 1}, an optimizer step for "
        "every batch; each trainer's own evaluation.",
        "",
        *report.map_table(scores),
    ]


def say(what: str, case: Case, found: str, began: float) -> None:
    """One line of progress."""
    print(f"{what}: {case.title}: {found} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
