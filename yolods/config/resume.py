"""Finds the run to resume, and refuses flags that would make it a different run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolods.config.deepspeed.config import DeepSpeedConfig, resolve
from yolods.config.hyper.hyperparameters import HyperRead
from yolods.config.names.data_name import shipped_yaml
from yolods.config.optimizers.json_block import merge_optimizer
from yolods.config.run import DEMO, RunConfig
from yolods.errors import Faults, nearest
from yolods.parsing.json_file import read_json
from yolods.parsing.rules import shown
from yolods.system.humanize import plural


def find_run(asked: str | bool, project: Path, config_file: str, faults: Faults) -> Path | None:
    """The folder of the run to resume.

    Args:
        asked: True for the newest run in `project` that has a checkpoint, or the newest run if none
            has; else a run's folder, or a file in it (weights/last.pt).

    Returns:
        the folder, which contains `config_file`; None, and a fault added, if there is none.
    """
    if asked is True:
        return _newest(project, config_file, faults)
    if asked == "":
        faults.add(
            "--resume is empty: name the run's folder (is a shell variable unset?), or use "
            "--resume without a value for the newest run"
        )
        return None
    return run_at(str(asked), config_file, f"--resume {asked}", faults)


def run_at(asked: str, config_file: str, where: str, faults: Faults) -> Path | None:
    """The folder of the run that a path names, or lies in; None, and a fault added: there is none.

    Args:
        asked: the run's folder, or a file at most two levels below it, such as weights/last.pt.
        where: begins the message.
    """
    path = Path(asked)
    for folder in (path, *list(path.parents)[:2]):
        if (folder / config_file).is_file():
            return folder
    if path.exists():
        faults.add(f"{where}: not a run's folder, it has no {config_file}")
    else:
        runs = {str(file.parent): file.parent for file in path.parent.glob(f"*/{config_file}")}
        faults.add(f"{where}: no such folder{nearest(str(path), runs)}")
    return None


def _newest(project: Path, config_file: str, faults: Faults) -> Path | None:
    """The newest run that has a checkpoint, or the newest; None, and a fault added, if there is
    none."""
    found = _runs(project, config_file)
    if not found:
        faults.add(
            f"--resume: no run in {project} (a run contains {config_file}); name its folder: "
            "--resume DIR"
        )
        return None
    return next((folder for folder in found if _has_checkpoint(folder)), found[0])


def passed_over(run_dir: Path, project: Path, config_file: str) -> tuple[str, ...]:
    """A line with the newer runs that --resume skips because they have no checkpoint."""
    found = _runs(project, config_file)
    places = [folder.resolve() for folder in found]
    known = run_dir.resolve() in places and _has_checkpoint(run_dir)
    newer = found[: places.index(run_dir.resolve())] if known else []
    if not newer:
        return ()
    names = ", ".join(str(folder) for folder in newer[:8])
    more = f" and {len(newer) - 8} others" if len(newer) > 8 else ""
    return (
        f"--resume continues {run_dir}; skipped newer runs without a checkpoint: {names}{more}",
    )


def _runs(project: Path, config_file: str) -> list[Path]:
    """Folders of runs, newest first."""
    found = sorted(
        project.glob(f"*/{config_file}"), key=lambda file: file.stat().st_mtime, reverse=True
    )
    return [file.parent for file in found]


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob("step[0-9]*"))


def check_unchanged(
    saved: RunConfig,
    args: argparse.Namespace,
    read: HyperRead,
    numbers: Mapping[str, int],
    faults: Faults,
) -> None:
    """Refuse flags that would make it a different run; more epochs, other workers and another
    layout are permitted."""
    run = saved.run_dir
    asked = _asked(saved, args, read, numbers)
    for flag, (now, before) in asked.items():
        if now != before:
            faults.add(
                f"{flag} is {shown(now)}, but the run in {run} has {shown(before)}; omit it to "
                "continue that run, or omit --resume to start a new one"
            )
    if numbers.get("epochs", saved.epochs) < saved.epochs:
        faults.add(
            f"--epochs {numbers['epochs']}: the run in {run} has {saved.epochs} epochs; the number "
            "can only be raised"
        )


def _asked(
    saved: RunConfig, args: argparse.Namespace, read: HyperRead, numbers: Mapping[str, int]
) -> dict[str, tuple[Any, Any]]:
    """Each flag that was given -> its value, and the saved run's."""
    asked: dict[str, tuple[Any, Any]] = {}
    for key, flag in (("data", "--data"), ("weights", "--weights")):
        value, before = getattr(args, key, None), getattr(saved, key)
        if value is not None:
            shipped = (
                shipped_yaml(Path(value)) if key == "data" and not Path(value).exists() else None
            )
            same = value in (DEMO, str(before))
            now = value if same else str(shipped or Path(value).absolute())
            asked[flag] = (now, None if before is None else str(before))
    if args.model is not None and Path(args.model).absolute() != Path(saved.model).absolute():
        asked["--model"] = (args.model, saved.model)
    if args.name is not None and args.name != saved.run_dir.name:
        asked["--name"] = (args.name, saved.name)
    # If the run's folder is a symbolic link, --project may name the folder of the link or of its
    # target.
    parents = (saved.run_dir.absolute().parent.resolve(), saved.run_dir.resolve().parent)
    if args.project is not None and Path(args.project).resolve() not in parents:
        asked["--project"] = (args.project, str(saved.run_dir.parent))
    for key, flag in (("imgsz", "--imgsz"), ("batch_size", "--batch-size")):
        if key in numbers:
            asked[flag] = (numbers[key], getattr(saved, key))
    # The JSON's optimizer overrode these keys of the hyp file, so the file may keep its values on a
    # resume.
    by_json = ("optimizer", "lr0", "momentum", "weight_decay") if saved.deepspeed.optimizer else ()
    for key, where in {**read.filed, **read.commanded}.items():
        if hasattr(saved.hyper, key) and not (key in by_json and key not in read.commanded):
            asked[where] = (getattr(read.hyper, key), getattr(saved.hyper, key))
    return asked


def relaid(
    saved: RunConfig, path: Path | None, world_size: int, device: str, faults: Faults
) -> DeepSpeedConfig:
    """The resolved JSON for a resume under another JSON, world size or device, with the run's step
    and optimizer."""
    where = "--resume" if path is None else f"--deepspeed_config {path}"
    raw = saved.deepspeed.raw if path is None else read_json(path, where, faults)
    found = Faults()
    config = resolve(
        saved.deepspeed.raw if raw is None else raw,
        path=saved.deepspeed.path if path is None else path,
        batch_size=saved.batch_size,
        world_size=world_size,
        device=device,
        faults=found,
        hyper=saved.hyper,
        said_by=f"--batch-size {saved.batch_size} of the run",
        before=saved.deepspeed.batches,
    )
    if config.train_batch != saved.deepspeed.train_batch:
        found.add(
            f"{where}: {config.train_batch} images per step, but the run has "
            f'{saved.deepspeed.train_batch}; write "auto" for the batch keys'
        )
    _check_optimizer(saved, config, where, found)
    if found and path is None and world_size != saved.deepspeed.world_size:
        found.add(
            f"{where}: the run's JSON is for {plural(saved.deepspeed.world_size, 'rank')}; "
            f"`yolods plan --ranks {world_size} --images-per-step {saved.deepspeed.train_batch} "
            "--out JSON`, with the run's --model, --imgsz and --data, writes one for "
            f"{plural(world_size, 'rank')}, with which the run goes on: --deepspeed_config JSON"
        )
    for line in found:
        faults.add(line)
    return config


def _check_optimizer(saved: RunConfig, config: DeepSpeedConfig, where: str, faults: Faults) -> None:
    """Refuse an optimizer in the JSON unlike the run's: a resume would ignore its values."""
    if config.optimizer is None:
        return
    if config.optimizer.name != saved.hyper.optimizer:
        faults.add(
            f"{where}: the optimizer is {config.optimizer.name}, but the run uses "
            f"{saved.hyper.optimizer}"
        )
        return
    asked, _ = merge_optimizer(HyperRead(saved.hyper, {}, {}, {}), config.optimizer, where, faults)
    for key in ("lr0", "momentum", "weight_decay"):
        if (now := getattr(asked, key)) != (before := getattr(saved.hyper, key)):
            faults.add(
                f'{where}: "optimizer" sets {key} to {shown(now)}, but the run has '
                f'{shown(before)}; write "auto"'
            )
