"""What is compared, and the command and environment that start each run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

REFERENCE = "ultralytics"


@dataclass(frozen=True)
class Case:
    """One way of training that is measured."""

    key: str
    """Its word on the command line."""
    title: str
    """Its name in tables."""
    config: str | None = None
    """File in ds_configs/; None: ultralytics' trainer."""
    ranks: int = 1
    """Ranks, each with cores of its own."""
    launched: bool = True
    """Through yolods' launcher, which sets glibc's allocator for ranks on a CPU; else
    `python -m yolods`."""
    copies: int = 1
    """Independent runs at once, each on cores of its own."""
    powersgd: int = 0
    """Rank of PowerSGD; 0: gradients are not compressed. Only in benchmarks/quality.py."""

    @property
    def cores(self) -> int:
        """Cores that it needs with one thread a rank."""
        return self.ranks * self.copies


CASES = {
    case.key: case
    for case in (
        Case(REFERENCE, "ultralytics DetectionTrainer, fp32"),
        Case("fp32", "yolods zero1_fp32", "zero1_fp32.json"),
        Case("plain", "yolods zero1_fp32, `python -m yolods`", "zero1_fp32.json", launched=False),
        Case("autocast", "yolods zero0_bf16_autocast", "zero0_bf16_autocast.json"),
        Case("bf16", "yolods zero1_bf16", "zero1_bf16.json"),
        Case("two-ranks", "yolods zero1_fp32, 2 ranks", "zero1_fp32.json", ranks=2),
        Case(
            "two-runs",
            "yolods zero1_fp32, 2 independent runs at once (each)",
            "zero1_fp32.json",
            copies=2,
        ),
    )
}

PAIRED = ("fp32", "plain", "autocast", "bf16")
"""Cases that are compared with an ultralytics run just before them."""


@dataclass(frozen=True)
class Settings:
    """What all runs share."""

    data: Path
    """Data yaml; a copy of the user's, because ultralytics writes beside the labels."""
    images: int
    """Training images."""
    model: str
    """Name in yolods' zoo."""
    imgsz: int
    """Image size in pixels."""
    batch: int
    """Images a forward pass on one rank."""
    threads: int
    """Threads a rank."""
    work: Path
    """Folder for everything that runs write."""


def plan(chosen: Sequence[str], cores: int, threads: int) -> list[Case]:
    """The runs of one round, in order: ultralytics before each case that is paired with it.

    Args:
        chosen: keys of `CASES`; the reference comes by itself.
        cores: cores there are; cases that need more are left out.
    """
    order = []
    for case in CASES.values():
        if case.key not in chosen or case.cores * threads > cores:
            continue
        order += [CASES[REFERENCE], case] if case.key in PAIRED else [case]
    return order


def hyper(kind: str, seed: int, *, map_epochs: int = 0) -> dict[str, Any]:
    """The hyper-parameters that differ from ultralytics' defaults, the same for both trainers.

    Args:
        kind: as `Task.kind`.
        map_epochs: epochs of a run of kind map.
    """
    if kind == "map":
        # So few epochs need a step for every batch, and a last stretch without mosaic as a full run
        # has it.
        return {"seed": seed, "nbs": 16, "close_mosaic": max(map_epochs // 4, 1), "plots": False}
    # Mosaic stays on, as it is for most of a full run. Warm-up ends with the epoch that is not
    # measured: after it a step accumulates as many batches as in a full run. A profile has no such
    # epoch.
    return {
        "seed": seed,
        "close_mosaic": 0,
        "warmup_epochs": 1.0 if kind == "rate" else 0.0,
        "plots": False,
        "val": False,
    }


def command(
    case: Case, settings: Settings, *, epochs: int, imgsz: int, hyper: Mapping[str, Any], name: str
) -> tuple[list[str], dict[str, str]]:
    """The command line of one run, and the variables that it is started with.

    Args:
        name: of its folder.
    """
    variables = {
        "OMP_NUM_THREADS": str(settings.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "YOLODS_CACHE": str(settings.work / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    if case.config is None:
        overrides = {
            "data": str(settings.data),
            "model": f"{settings.model}.yaml",
            "epochs": epochs,
            "batch": settings.batch,
            "imgsz": imgsz,
            "device": "cpu",
            "project": str(settings.work / "runs"),
            "name": name,
            **hyper,
        }
        return [
            sys.executable,
            str(HERE / "drive_ultralytics.py"),
            json.dumps(overrides),
        ], variables
    words = [
        "train",
        "--data",
        str(settings.data),
        "--model",
        settings.model,
        "--epochs",
        str(epochs),
    ]
    words += [
        "--batch-size",
        str(settings.batch * case.ranks),
        "--imgsz",
        str(imgsz),
        "--workers",
        "0",
    ]
    words += ["--deepspeed_config", str(ROOT / "ds_configs" / case.config)]
    words += ["--project", str(settings.work / "runs"), "--name", name]
    for key, value in hyper.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    if case.launched:
        words = ["launch", *words, "--num_gpus", str(case.ranks)]
    return [sys.executable, str(HERE / "drive_yolods.py"), *words], variables
