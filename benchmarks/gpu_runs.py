"""Whole runs as a user starts them: BCCD in three precisions, a stop and its resume,
DS_ACCELERATOR=cpu, offload."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.gpu_conductor import end
from benchmarks.gpu_job import ROOT, Item, Job, Skip

COMMAND = (sys.executable, "-m", "yolods", "launch", "train")
CONFIGS = ROOT / "ds_configs"
RESERVE = 4.0
"""Seconds before the part's end at which runs that are not over are ended and read as they are."""
POLL = 0.2
STOPPED = 143
"""Exit status of a run that SIGTERM has stopped in good order."""
LOSSES = ("train/box_loss", "train/cls_loss", "train/dfl_loss", "metrics/mAP50(B)")


class Run:
    """`yolods launch train` in a process of its own; leaving the context ends it with all that it
    started."""

    def __init__(
        self,
        name: str,
        folder: Path,
        words: Sequence[str],
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.folder, self.screen = name, folder / name, folder / f"{name}.screen"
        self.words, self._environ = list(words), dict(environ or {})

    def __enter__(self) -> Run:
        self.screen.parent.mkdir(parents=True, exist_ok=True)
        self.began = time.monotonic()
        with self.screen.open("ab") as sink:
            self.process = subprocess.Popen(
                [*COMMAND, *self.words],
                cwd=ROOT,
                env={**os.environ, **self._environ},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        end(self.process)

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None where it is not over by then."""
        try:
            return self.process.wait(timeout=max(0.1, seconds))
        except subprocess.TimeoutExpired:
            return None

    def stop_after(self, epochs: int, seconds: float) -> None:
        """Send SIGTERM once so many epochs are in results.csv.

        Raises:
            RuntimeError: it never came so far.
        """
        deadline = time.monotonic() + seconds
        while (
            len(self.rows()) < epochs
            and self.process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(POLL)
        if len(self.rows()) < epochs or self.process.poll() is not None:
            raise RuntimeError(
                f"no {epochs} epochs to stop after; it printed last: {self.end_of_screen()}"
            )
        self.process.send_signal(signal.SIGTERM)

    def rows(self) -> list[dict[str, str]]:
        """results.csv, an entry an epoch."""
        file = self.folder / "results.csv"
        if not file.is_file():
            return []
        with file.open(encoding="utf-8") as lines:
            return list(csv.DictReader(lines, skipinitialspace=True))

    def end_of_screen(self, lines: int = 6) -> str:
        """What it printed last."""
        return " / ".join(
            self.screen.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        )


def words(
    data: object,
    config: str,
    folder: Path,
    name: str,
    job: Job,
    *,
    imgsz: int,
    batch: int,
    epochs: int,
) -> list[str]:
    """Flags of `train`, on one rank, without pictures."""
    told = [
        "--data",
        str(data),
        "--model",
        "yolov5n",
        "--imgsz",
        str(imgsz),
        "--batch-size",
        str(batch),
    ]
    told += [
        "--epochs",
        str(epochs),
        "--workers",
        "0" if job.pretend else "4",
        "--noplots",
        "--num_gpus",
        "1",
    ]
    return [
        *told,
        "--deepspeed_config",
        str(CONFIGS / f"{config}.json"),
        "--project",
        str(folder),
        "--name",
        name,
    ]


def bccd(job: Job) -> None:
    """BCCD at 320 pixels, in fp32, bf16 and fp16, all at once: they are read, not timed."""
    data, why = _bccd_data(job)
    if data is None:
        with job.item("BCCD"):
            raise Skip(why)
        return
    kinds = ("zero1_fp32",) if job.pretend else ("zero1_fp32", "zero1_bf16", "zero2_fp16")
    sizes: dict[str, Any] = (
        {"imgsz": 64, "batch": 16, "epochs": 1}
        if job.pretend
        else {"imgsz": 320, "batch": 16, "epochs": 12}
    )
    with ExitStack() as stack:
        runs = [
            Run(kind, job.work, words(data, kind, job.work, kind, job, **sizes)) for kind in kinds
        ]
        for run in runs:
            stack.enter_context(run)
        reached: dict[str, float] = {}
        for run in runs:
            with job.item(f"BCCD, {run.name}") as item:
                status = run.wait(job.left - RESERVE)
                reached[run.name] = read(item, run, status, sizes["epochs"])
    if not job.pretend:
        with job.item("BCCD, fp16 and bf16 against fp32") as item:
            item.facts |= {f"{name}, best mAP50": best for name, best in reached.items()}
            for name, best in reached.items():
                item.expect(
                    best > reached["zero1_fp32"] - 0.15, f"{name} lies 0.15 and more below fp32"
                )


def _bccd_data(job: Job) -> tuple[Path | None, str]:
    places = (
        [job.data]
        if job.data
        else [folder / "shared" / "data" / "bccd" / "bccd.yaml" for folder in (ROOT.parent, ROOT)]
    )
    for place in places:
        if place.is_file():
            return place, ""
    return (
        None,
        f"the data set is not there ({' or '.join(map(str, places))}); --data names another place",
    )


def read(item: Item, run: Run, status: int | None, epochs: int) -> float:
    """What a run has left. Returns its best mAP50; 0 without an epoch."""
    rows = run.rows()
    item.facts["exit status"] = "not over" if status is None else status
    item.facts["epochs"] = len(rows)
    best = max((float(row["metrics/mAP50(B)"]) for row in rows), default=0.0)
    if rows:
        item.facts |= {"best mAP50": best, "last box_loss": float(rows[-1]["train/box_loss"])}
    events = run.folder / "stability.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines() if events.is_file() else []
    item.facts["events"] = [
        f"{each['action']} {each['cause']}" for each in map(json.loads, lines[:8])
    ]
    item.expect(
        status == 0,
        f"exit status {status} after {len(rows)} of {epochs} epochs: {run.end_of_screen()}",
    )
    item.expect(status != 0 or (run.folder / "weights" / "best.pt").is_file(), "no best.pt")
    return best


def resume(job: Job) -> None:
    """A run that SIGTERM stops and --resume ends, beside one that nothing stops: the same numbers
    to the last digit."""
    epochs = 2 if job.pretend else 4
    sizes: dict[str, Any] = {"imgsz": 64 if job.pretend else 320, "batch": 32, "epochs": epochs}
    told = {
        name: words("demo", "zero1_fp32", job.work, name, job, **sizes)
        for name in ("whole", "stopped")
    }
    with job.item("stopped and resumed against unbroken") as item:
        with Run("whole", job.work, told["whole"]) as whole:
            with Run("stopped", job.work, told["stopped"]) as stopped:
                stopped.stop_after(1, job.left - RESERVE)
                item.facts["exit status after SIGTERM"] = status = stopped.wait(job.left - RESERVE)
                item.facts["epochs in results.csv then"] = len(stopped.rows())
                item.expect(status == STOPPED, f"{STOPPED} expected: {stopped.end_of_screen()}")
            with Run(
                "stopped", job.work, ["--resume", str(stopped.folder), "--num_gpus", "1"]
            ) as resumed:
                item.facts["exit status, resumed"] = status = resumed.wait(job.left - RESERVE)
                item.expect(status == 0, f"the resumed run: {resumed.end_of_screen()}")
            item.facts["exit status, unbroken"] = status = whole.wait(job.left - RESERVE)
            item.expect(status == 0, f"the unbroken run: {whole.end_of_screen()}")
        _same_rows(item, whole.rows(), resumed.rows(), epochs)
        _same_weights(item, whole.folder, stopped.folder)


def _same_rows(
    item: Item, one: list[dict[str, str]], other: list[dict[str, str]], epochs: int
) -> None:
    for number, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        item.facts[f"epoch {number + 1}"] = [f"{mine[name]} {theirs[name]}" for name in LOSSES]
        differ = [name for name in LOSSES if mine[name] != theirs[name]]
        item.expect(not differ, f"epoch {number + 1} differs in {', '.join(differ)}")
    item.expect(
        len(one) == len(other) == epochs, f"{len(one)} and {len(other)} epochs instead of {epochs}"
    )


def _same_weights(item: Item, one: Path, other: Path) -> None:
    import torch

    mine, theirs = (
        torch.load(each / "weights" / "last.pt", weights_only=False, map_location="cpu")
        for each in (one, other)
    )
    pairs = zip(
        mine["model"].state_dict().values(), theirs["model"].state_dict().values(), strict=True
    )
    apart = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    item.facts["last.pt: largest difference"] = apart
    item.expect(apart == 0, f"last.pt differs by {apart:.3g}")


def on_the_cpu(job: Job) -> None:
    """DS_ACCELERATOR=cpu on a host with a GPU: ranks compute on the CPU, and the GPU's memory stays
    as it was."""
    with job.item("DS_ACCELERATOR=cpu") as item:
        sizes: dict[str, Any] = {"imgsz": 64, "batch": 16, "epochs": 1}
        before = _gpu_memory()
        with Run(
            "cpu",
            job.work,
            words("demo", "zero1_fp32", job.work, "cpu", job, **sizes),
            {"DS_ACCELERATOR": "cpu"},
        ) as run:
            most = before
            while (status := run.wait(POLL)) is None and job.left > RESERVE:
                most = max(most, _gpu_memory())
            read(item, run, status, 1)
        item.facts["GPU memory before, most, MiB"] = [before, most]
        item.expect(most - before < 100, f"{most - before:.0f} MiB of the GPU were taken")


def _gpu_memory() -> float:
    """MiB in use on the first GPU, by nvidia-smi; 0 without one."""
    try:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return float(
            subprocess.run(
                query, capture_output=True, text=True, timeout=10, check=True
            ).stdout.split()[0]
        )
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0.0


def offload(job: Job) -> None:
    """The engines that keep their optimizer on the host, and then a run under ZeRO-3 with it."""
    from benchmarks.gpu_engines import offloaded

    offloaded(job)
    with job.item("a run under zero3_offload_fp16") as item:
        if job.pretend:
            raise Skip("fp16 runs on GPUs only")
        sizes: dict[str, Any] = {"imgsz": 128, "batch": 32, "epochs": 1}
        with Run(
            "offload",
            job.work,
            words("demo", "zero3_offload_fp16", job.work, "offload", job, **sizes),
        ) as run:
            read(item, run, run.wait(job.left - RESERVE), 1)
