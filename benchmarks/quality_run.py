"""One run of the quality benchmark, in a fork of a Python that has everything imported: train, and
judge last.pt.

benchmark                 leader, in a session of its own              ranks
start(..)  -- forks -->   forks the ranks, waits, judges last.pt  -->  ultralytics' trainer, or
                                                                       yolods' command line
           <- result --   as JSON
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bf16_products
from benchmarks import quality_report as report
from benchmarks.cases import ROOT, Case
from tests.as_started import is_alone
from yolods import compat

IMPORTED = (
    *(
        "deepspeed",
        "deepspeed.runtime.superoffload.superoffload_stage3",
        "torch.distributed.nn.functional",
    ),
    *("ultralytics.models.yolo.detect", "ultralytics.nn.tasks", "ultralytics.utils.loss"),
    *("torch._dynamo", "torch._inductor.compile_fx", "yolods.training.start"),
)
"""What either trainer would import."""

TRAIN, SCREEN, RESULT = "train", "screen.log", "result.json"
"""In a run's folder: the trainer's own folder, all that is printed, and what came out."""

LIMIT = 1800.0
"""Seconds after which a run counts as hung."""

METRICS = {
    "precision": "metrics/precision(B)",
    "recall": "metrics/recall(B)",
    "mAP50": "metrics/mAP50(B)",
    "mAP50-95": "metrics/mAP50-95(B)",
}
"""What is noted of a run, and ultralytics' names for it."""


@dataclass(frozen=True)
class Plan:
    """What all runs share."""

    work: Path
    """Folder for everything that runs write."""
    model: Path
    """The model's yaml, one file for both trainers."""
    imgsz: int
    """Image size in pixels."""
    batch: int
    """Images of a step, over all ranks."""
    epochs: int
    """Epochs of a run."""
    hyper: dict[str, Any]
    """Hyper-parameters that differ from ultralytics' defaults, for both trainers; the seed comes
    besides."""

    def folder(self, job: Job) -> Path:
        """Everything that a run writes, until it has ended."""
        return self.work / "running" / job.name


@dataclass(frozen=True)
class Job:
    """One run."""

    case: Case
    set: str
    data: Path
    """Data yaml of the set."""
    seed: int
    further: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of this run of yolods' alone."""

    @property
    def name(self) -> str:
        """Unique among the runs of a benchmark."""
        return f"{self.case.key}-{self.set}-{self.seed}"


def import_all() -> None:
    """Import what the runs need, with yolods' workarounds in place.

    Raises:
        RuntimeError: an import has started a thread, whose locks would stay locked in the forks for
            ever.
    """
    from yolods.commands.running import prepare_libraries

    compat.prepare()
    prepare_libraries()
    compat.use_local_font()
    for module in IMPORTED:
        importlib.import_module(module)
    if not bf16_products.has_instructions():
        bf16_products.use_fp32_products()
    if not is_alone():
        raise RuntimeError("an import has started a thread: this process cannot be forked")


def forked(
    function: Callable[[], None], screen: Path, *, session: bool = False, **variables: str
) -> int:
    """Call a function in a fork, whose exit status is 1 where it raises; returns its pid.

    Args:
        screen: file that takes all that is printed.
        session: whether it leads a session of its own.
        variables: of its environment.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        if session:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sink = os.open(screen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout = sys.stderr = os.fdopen(sink, "w", buffering=1)
        os.environ |= variables
        function()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # never back into the code of the process that was forked


def lead(plan: Plan, job: Job, benchmark: int) -> None:
    """Start a run's ranks, wait for them, judge what they leave, keep it, and write `RESULT` into
    the run's folder.

    Args:
        benchmark: pid of the process that asked for it; the run ends with it.
    """
    folder, began = plan.folder(job), time.monotonic()
    last, judged = folder / TRAIN / "weights" / "last.pt", folder / "judged.json"
    # ultralytics' best.pt is its last.pt, for only the last epoch is evaluated.
    best = last if job.case.config is None else last.with_name("best.pt")
    _train(plan, job, benchmark)
    seconds, cpu = time.monotonic() - began, _cpu_seconds()
    found = {}
    for prefix, file in ((report.LAST, last), ("", best)):
        _wait([forked(partial(_judge, plan, job, file, judged), folder / SCREEN)], benchmark)
        found |= {
            f"{prefix}{name}": value
            for name, value in json.loads(judged.read_text(encoding="utf-8")).items()
        }
    result = {
        **found,
        "train losses": _train_losses(folder / TRAIN / "results.csv"),
        "seconds": round(seconds, 1),
        "cpu seconds": round(cpu, 1),
        "judging cpu seconds": round(_cpu_seconds() - cpu, 1),
    }
    kept = plan.work / "weights" / f"{job.name}.pt"
    kept.parent.mkdir(exist_ok=True)
    last.replace(kept)
    unfinished = folder / f".{RESULT}"
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(folder / RESULT)


def _train(plan: Plan, job: Job, benchmark: int) -> None:
    screen = plan.folder(job) / SCREEN
    if job.case.config is None:
        _wait([forked(lambda: _train_ultralytics(plan, job), screen)], benchmark)
        return
    from yolods.launch.command import free_port

    size = str(job.case.ranks)
    world = {
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    write_unwatched(
        ROOT / "ds_configs" / job.case.config, plan.folder(job), powersgd=job.case.powersgd
    )
    words = yolods_words(plan, job)
    ranks = [
        forked(lambda: _train_yolods(words), screen, RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in range(job.case.ranks)
    ]
    _wait(ranks, benchmark)


def _wait(pids: list[int], benchmark: int) -> None:
    """Until all have ended; a failure of one, or the benchmark's end, ends the session."""
    deadline, alive = time.monotonic() + LIMIT, set(pids)
    while alive:
        for pid in list(alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                if status:
                    _end("a process of the run failed")
        if time.monotonic() > deadline:
            _end(f"the run has not ended in {LIMIT:g} s")
        if os.getppid() != benchmark:
            _end("the benchmark has ended")
        time.sleep(0.05)


def _end(reason: str) -> None:
    """End this session, this process included."""
    print(f"\n{reason}", flush=True)
    os.killpg(0, signal.SIGKILL)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ultralytics_overrides(plan: Plan, job: Job) -> dict[str, Any]:
    """What DetectionTrainer is given."""
    return {
        "data": str(job.data),
        "model": str(plan.model),
        "epochs": plan.epochs,
        "batch": plan.batch,
        "imgsz": plan.imgsz,
        "device": "cpu",
        "project": str(plan.folder(job)),
        "name": TRAIN,
        "seed": job.seed,
        **plan.hyper,
    }


def yolods_words(plan: Plan, job: Job) -> list[str]:
    """The command line that yolods is given on every rank."""
    assert job.case.config is not None
    words = [
        "train",
        "--data",
        str(job.data),
        "--model",
        str(plan.model),
        "--epochs",
        str(plan.epochs),
    ]
    words += [
        "--batch-size",
        str(plan.batch),
        "--imgsz",
        str(plan.imgsz),
        "--workers",
        "0",
        "--seed",
        str(job.seed),
    ]
    words += ["--deepspeed_config", str(plan.folder(job) / job.case.config)]
    words += ["--run-dir", str(plan.folder(job) / TRAIN)]
    for key, value in {**plan.hyper, **job.further}.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return words


def write_unwatched(config: Path, folder: Path, *, powersgd: int = 0) -> None:
    """Copy a DeepSpeed JSON and turn the watchdog off, which would end ranks that a busy machine
    does not let run.

    Args:
        powersgd: rank of the compression of gradients; 0: none.
    """
    settings = json.loads(config.read_text(encoding="utf-8"))
    own = settings.setdefault("yolods", {})
    own["watchdog"] = {"enabled": False}
    if powersgd:
        own["compression"] = {"kind": "powersgd", "rank": powersgd}
    (folder / config.name).write_text(json.dumps(settings), encoding="utf-8")


def _train_ultralytics(plan: Plan, job: Job) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    trainer = DetectionTrainer(overrides=ultralytics_overrides(plan, job))
    trainer.add_callback("on_train_start", lambda _: _one_thread())
    _one_thread()
    trainer.train()


def _one_thread() -> None:
    # Choosing its device, ultralytics 8.4.190 takes one thread fewer than the machine has cores, 8
    # at most.
    import torch

    torch.set_num_threads(1)


def _train_yolods(words: list[str]) -> None:
    from yolods import cli

    sys.exit(cli.main(words))


def _judge(plan: Plan, job: Job, weights: Path, to: Path) -> None:
    """ultralytics' own validator on a .pt, whoever has trained it."""
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.utils import nms

    from yolods.evaluation.evaluator import UNLIMITED_SECONDS

    # Else a batch whose NMS takes longer loses the rest of its boxes, and a busy machine would
    # lower the result.
    nms.non_max_suppression = partial(nms.non_max_suppression, max_time_img=UNLIMITED_SECONDS)
    settings = {
        "model": str(weights),
        "data": str(job.data),
        "imgsz": plan.imgsz,
        "batch": plan.batch,
        "device": "cpu",
        "workers": 0,
        "rect": True,  # as `yolo val`
        "plots": False,
        "project": str(plan.folder(job)),
        "name": "judged",
    }
    validator = DetectionValidator(args=settings)
    validator.add_callback("on_val_start", lambda _: _one_thread())
    found = validator(model=str(weights))
    to.write_text(
        json.dumps({name: float(found[key]) for name, key in METRICS.items()}), encoding="utf-8"
    )


def _train_losses(results: Path) -> dict[str, float]:
    """The last epoch's, of the results.csv that both trainers write."""
    with results.open(encoding="utf-8") as lines:
        *_, last = csv.DictReader(lines, skipinitialspace=True)
    return {
        key.strip(): float(value) for key, value in last.items() if key.strip().startswith("train/")
    }


def copy_and_scan(data: str, work: Path, out: Path) -> None:
    """Copy a set and have ultralytics write its caches, so that runs at once do not.

    Args:
        data: a data yaml, or demo.
        work: folder for the copy.
        out: text file for the path of the yaml to train with.
    """
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    from benchmarks.copies import copy_of

    file, _ = copy_of(data, work)
    spec = check_det_dataset(str(file))
    for split in ("train", "val"):
        YOLODataset(img_path=spec[split], data=spec, task="detect", augment=False)
    out.write_text(str(file), encoding="utf-8")
