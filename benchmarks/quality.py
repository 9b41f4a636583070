"""Detectors by yolods' layouts and by ultralytics' own trainer, over many seeds, judged by one \
evaluator.

    python benchmarks/quality.py --record benchmarks/quality.md

One line per run that has ended, with the time that is left. Results are appended to
--work/results.jsonl: the same command goes on where it was stopped, Ctrl-C included. A record has
the results of its runs beside it (.jsonl), and an empty --work goes on from those: all 160 runs
take hours. `--record FILE --report-only` writes the record from what is there. `--help` lists what
can be chosen.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import yaml

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import quality_report as report
from benchmarks.cases import REFERENCE, ROOT, Case, hyper
from benchmarks.hardware import commit, describe
from benchmarks.quality_run import (
    RESULT,
    SCREEN,
    Job,
    Plan,
    copy_and_scan,
    forked,
    import_all,
    lead,
)
from yolods.errors import UserError
from yolods.launch.command import ALLOCATOR
from yolods.model.architecture.build import architecture, parse_name

CASES = {
    case.key: case
    for case in (
        Case(REFERENCE, "ultralytics DetectionTrainer, fp32"),
        Case("zero1_fp32", "yolods zero1_fp32, 1 rank", "zero1_fp32.json"),
        Case(
            "zero2_bf16_autocast", "yolods zero2_bf16_autocast, 1 rank", "zero2_bf16_autocast.json"
        ),
        Case("zero2_fp32", "yolods zero2_fp32, 2 ranks", "zero2_fp32.json", ranks=2),
        Case("pipeline2_fp32", "yolods pipeline2_fp32, 2 stages", "pipeline2_fp32.json", ranks=2),
        Case("zero0_fp32", "yolods zero0_fp32, 2 ranks", "zero0_fp32.json", ranks=2),
        *(
            Case(
                f"powersgd{rank}",
                f"yolods zero0_fp32 with PowerSGD of rank {rank}, 2 ranks",
                "zero0_fp32.json",
                ranks=2,
                powersgd=rank,
            )
            for rank in (1, 2, 4)
        ),
    )
}
"""Those on one rank first: then cores are idle once per seed at most, before the first that needs
two."""

USUAL = (REFERENCE, "zero1_fp32", "zero2_bf16_autocast", "zero2_fp32", "pipeline2_fp32")
"""What is trained unless the command line says otherwise."""

BCCD = Path("shared/data/bccd/bccd.yaml")
"""The blood cells, in any of the folders that this clone lies in."""

RESULTS = "results.jsonl"
"""In the folder of the work, a line per run."""

FAILURES = 3
"""Runs that failed, after which the benchmark gives up: it is not chance any more."""

VARIABLES = {
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    **ALLOCATOR,
}
"""Libraries read these when they are loaded."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--data",
        action="append",
        metavar="NAME=YAML",
        help="a set; repeat it (default: demo, and bccd where it is)",
    )
    made.add_argument(
        "--seeds", type=int, default=16, metavar="N", help="seeds 0 to N-1 (default 16)"
    )
    made.add_argument(
        "--cases",
        nargs="+",
        choices=CASES,
        default=list(USUAL),
        help=f"what to train (default: {' '.join(USUAL)})",
    )
    made.add_argument("--epochs", type=int, default=12, metavar="N", help="of a run (default 12)")
    made.add_argument(
        "--imgsz", type=int, default=160, metavar="PX", help="image size (default 160)"
    )
    made.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="images of a step (default 16)"
    )
    made.add_argument(
        "--model",
        default="yolov5n",
        metavar="NAME",
        help="or yolov5[depth,width] (default yolov5n)",
    )
    made.add_argument(
        "--cores", type=int, metavar="N", help="ranks at once (default: as many as there are cores)"
    )
    made.add_argument(
        "--work",
        type=Path,
        default=Path("runs/quality"),
        metavar="DIR",
        help="default runs/quality",
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the table there")
    made.add_argument(
        "--report-only", action="store_true", help="train nothing, show what there is"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 1 where runs failed, 2 for a mistake of the user's, 130
    after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    for name in ("seeds", "epochs", "batch_size"):
        if getattr(options, name) < 1:
            parser().error(
                f"--{name.replace('_', '-')} {getattr(options, name)}: has to be at least 1"
            )
    if any(os.environ.get(name) != value for name, value in VARIABLES.items()):
        os.execve(sys.executable, [sys.executable, __file__, *words], {**os.environ, **VARIABLES})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = measure(options)
    except (UserError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on")
        status = 130
    write_record(options, words)
    return status


def measure(options: argparse.Namespace) -> int:
    """Make the runs that are missing; returns the exit status."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["YOLODS_CACHE"] = str(work / "cache")
    if options.record is not None:
        go_on_from(options.record, work)
    results = Results(work / RESULTS, settings_of(options))
    if options.report_only:
        return 0
    shutil.rmtree(work / "running", ignore_errors=True)
    model = model_file(options.model, work)
    plan = Plan(
        work, model, options.imgsz, options.batch_size, options.epochs, results.settings["hyper"]
    )
    import_all()
    sets = copies(options.data, work)
    cores = options.cores or len(os.sched_getaffinity(0))
    cases = [CASES[key] for key in CASES if key in options.cases]
    for case in [case for case in cases if case.ranks > cores]:
        print(
            f"{case.key} is left out: it needs {case.ranks} cores, and there are {cores}",
            flush=True,
        )
        cases.remove(case)
    jobs = [
        Job(case, name, sets[name], seed)
        for seed in range(options.seeds)
        for case in cases
        for name in sets
    ]
    todo = [job for job in jobs if (job.case.key, job.set, job.seed) not in results.done]
    print(f"{len(todo)} of {len(jobs)} runs are to be made, on {cores} cores", flush=True)
    return 1 if Pool(plan, results, todo, cores).work() else 0


def go_on_from(record: Path, work: Path) -> None:
    """Begin with the results that stand beside a record, where `work` has none."""
    kept, file = record.with_suffix(".jsonl"), work / RESULTS
    if kept.is_file() and not file.exists():
        shutil.copy(kept, file)
        print(f"going on from the {len(read_results(file))} runs of {kept}", flush=True)


def model_file(name: str, work: Path) -> Path:
    """A model of the zoo, or of any size, as a yaml below `work` that both trainers read.

    Raises:
        UserError: there is no such model.
    """
    layers = architecture(
        parse_name(name), nc=80, channels=3
    )  # both trainers take the number of classes from the data
    file = work / "model.yaml"
    file.write_text(yaml.safe_dump(layers, sort_keys=False), encoding="utf-8")
    return file


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What all lines of one file of results have in common."""
    kept = hyper("map", 0, map_epochs=options.epochs)
    del kept["seed"]  # each run has its own
    return {
        "model": options.model,
        "imgsz": options.imgsz,
        "batch": options.batch_size,
        "epochs": options.epochs,
        "hyper": {**kept, "val": False},
    }


def copies(given: list[str] | None, work: Path) -> dict[str, Path]:
    """Data yaml of each set, copied below `work`, with ultralytics' caches written.

    Raises:
        UserError: a set is not there or has faults.
    """
    wanted = dict(pair.partition("=")[::2] for pair in given or [])
    if not given:
        wanted = {"demo": "demo"}
        if found := [str(folder / BCCD) for folder in ROOT.parents if (folder / BCCD).is_file()]:
            wanted = {"bccd": found[0], **wanted}
        else:
            print(
                f"bccd is left out: no folder above {ROOT} holds {BCCD}; --data bccd=YAML --data "
                "demo=demo takes it"
            )
    for name, file in wanted.items():
        if file != "demo" and not Path(file).is_file():
            raise UserError(
                f"--data {name}={file}: no such file; write NAME=YAML, or demo=demo for the "
                "embedded set"
            )
    screen, made = work / "data.log", {}
    for name, file in wanted.items():
        (work / "data").mkdir(exist_ok=True)
        out = work / "data" / f"{name}.txt"
        pid = forked(partial(copy_and_scan, file, work / "data" / name, out), screen)
        if os.waitpid(pid, 0)[1]:
            raise UserError(f"--data {name}={file} could not be copied:\n{end_of(screen)}")
        made[name] = Path(out.read_text(encoding="utf-8"))
    return made


class Results:
    """The lines of results so far, in a file that only grows."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        """
        Args:
            settings: of the runs to come.

        Raises:
            UserError: the file's runs had other settings.
        """
        self._file, self.settings, self._commit = file, settings, commit()
        self.lines = read_results(file)
        for line in self.lines:
            other = {
                key: line["settings"].get(key)
                for key in settings
                if line["settings"].get(key) != settings[key]
            }
            if other:
                own = {key: settings[key] for key in other}
                raise UserError(
                    f"{file} holds runs with {other}, and these would have {own}; choose another "
                    "--work"
                )

    @property
    def done(self) -> set[tuple[str, str, int]]:
        """Case, set and seed of every run that has ended well."""
        return {(line["case"], line["set"], line["seed"]) for line in self.lines}

    def add(self, job: Job, found: dict[str, Any]) -> dict[str, Any]:
        """Append a run; returns its line."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        line = {"case": job.case.key, "set": job.set, "seed": job.seed, **found}
        line |= {"ended": now, "commit": self._commit, "settings": self.settings}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)
        return line


def read_results(file: Path) -> list[dict[str, Any]]:
    """All whole lines; one that the machine's end has cut off is left out, and removed from the
    file.

    Raises:
        UserError: a line that is not the last is no result.
    """
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    whole, _, cut = text.rpartition("\n")
    if cut:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    lines = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: {error}; remove the line") from None
    return lines


def next_job(todo: Sequence[Job], free: int) -> int | None:
    """Place of the first job that fits into the free cores, among those of the first one's seed;
    None: wait.

    Seeds are finished one after the other, so that what is there at any time is balanced.
    """
    for place, job in enumerate(todo):
        if job.seed != todo[0].seed:
            break
        if job.case.ranks <= free:
            return place
    return None


class Pool:
    """Keeps the cores busy with runs until all have ended."""

    def __init__(
        self,
        plan: Plan,
        results: Results,
        todo: list[Job],
        cores: int,
        cases: Mapping[str, Case] = CASES,
    ) -> None:
        """
        Args:
            cases: all that the results may have.
        """
        self._plan, self._results, self._todo, self._cores = plan, results, todo, cores
        self._cases = cases
        self._running: dict[int, Job] = {}
        self._failed: list[Job] = []
        self._whole = len(todo)

    def work(self) -> list[Job]:
        """Make all runs; returns those that failed.

        Raises:
            RuntimeError: `FAILURES` have.
        """
        try:
            while self._todo or self._running:
                self._start()
                pid, status = os.waitpid(-1, 0)
                if (job := self._running.pop(pid, None)) is not None:
                    with suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)  # what it may have left of its session
                    self._ended(job, status)
        finally:
            for pid in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return self._failed

    def _start(self) -> None:
        while self._todo:
            free = self._cores - sum(job.case.ranks for job in self._running.values())
            if (place := next_job(self._todo, free)) is None:
                return
            job = self._todo.pop(place)
            folder = self._plan.folder(job)
            folder.mkdir(parents=True)
            pid = forked(partial(lead, self._plan, job, os.getpid()), folder / SCREEN, session=True)
            self._running[pid] = job

    def _ended(self, job: Job, status: int) -> None:
        folder = self._plan.folder(job)
        left = len(self._todo) + len(self._running)
        place = f"{self._whole - left}/{self._whole} {job.case.key}, {job.set}, seed {job.seed}"
        if status or not (folder / RESULT).is_file():
            self._failed.append(job)
            log = self._plan.work / f"failed-{job.name}.log"
            (folder / SCREEN).replace(log)
            print(f"{place}: failed; {log} ends with\n{end_of(log)}", flush=True)
            if len(self._failed) >= FAILURES:
                raise RuntimeError(f"{len(self._failed)} runs have failed")
        else:
            line = self._results.add(job, json.loads((folder / RESULT).read_text(encoding="utf-8")))
            print(f"{place}: {report.one_line(line)}; {left} left, {self._time_left()}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)

    def _time_left(self) -> str:
        jobs = [*self._todo, *self._running.values()]
        ranks = {key: case.ranks for key, case in self._cases.items()}
        wanted = [(job.case.key, job.set) for job in jobs]
        return report.time_left(self._results.lines, wanted, ranks, self._cores)


def end_of(log: Path, lines: int = 25) -> str:
    """What was printed last."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def write_record(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Show the tables of all results, and write them where asked for."""
    lines = read_results(options.work / RESULTS)
    if not lines:
        return
    tables = report.tables(lines, {key: case.title for key, case in CASES.items()}, REFERENCE)
    print("\n" + "\n".join(tables))
    if options.record is not None:
        cores = list(range(options.cores or len(os.sched_getaffinity(0))))
        head = report.head(
            lines, shlex.join(["python", "benchmarks/quality.py", *words]), describe(cores)
        )
        options.record.write_text("\n".join([*head, *tables]) + "\n", encoding="utf-8")
        shutil.copy(options.work / RESULTS, options.record.with_suffix(".jsonl"))


if __name__ == "__main__":
    sys.exit(main())
