"""The whole configuration of a run as one frozen object, stored as config.json."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from yolods.config.deepspeed.batch import ACCUMULATION, MICRO, TRAIN, BatchPlan
from yolods.config.deepspeed.config import DeepSpeedConfig, resolve
from yolods.config.deepspeed.monitors import folder_variables, kept_within
from yolods.config.hyper.hyperparameters import Given, Hyper, read_hyper
from yolods.errors import Faults, UserError
from yolods.parsing.json_file import parse_json
from yolods.parsing.rules import Rule, check, flag, one_of, optional, text, whole

CONFIG_FILE = "config.json"
"""File of the resolved configuration in a run's folder."""

DEMO = "demo"
"""Value of --data for the embedded data set."""

DEFAULT_MODEL = "yolov5s"

NUMBERS: Mapping[str, Rule] = MappingProxyType(
    {"epochs": whole(1), "imgsz": whole(1, most=2**16), "batch_size": whole(1), "workers": whole(0)}
)
"""Rules for the numbers of a run, whether from flags, hyp file or config.json."""

TRACE_STEPS = whole(1, 100)
"""Rule for the steps that a start traces: all of them are in memory until the last one."""

_SAVED: Mapping[str, Rule] = MappingProxyType(
    {
        **NUMBERS,
        "ranks": whole(1),
        "device": one_of("cpu", "cuda"),
        "exist_ok": flag(),
        **dict.fromkeys(("data", "model", "project", "name"), text()),
        **dict.fromkeys(("weights", "deepspeed_path"), optional(text())),
    }
)
"""Rules for the keys of config.json outside its blocks."""


# Wide: one field for each flag of a run, and one for each block.
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. Paths are absolute, except that of the run's folder."""

    data: Path
    """The data yaml, or Path("demo")."""
    model: str
    """The architecture: a name such as yolov5s, yolov5[depth,width], or a yaml's path."""
    weights: Path | None
    """An ultralytics .pt to start from; None: random weights."""
    epochs: int = 100
    """Passes over the training images."""
    imgsz: int = 640
    """Image size in pixels; a multiple of the model's largest stride."""
    workers: int = 8
    """Loader processes per rank; fewer start on a host with fewer cores."""
    project: Path = Path("runs")
    """Folder for runs."""
    name: str = "exp"
    """The requested name; `run_dir` appends a number if that folder existed."""
    exist_ok: bool = False
    """Whether the run may write into an existing folder."""
    loggers: tuple[str, ...] = ()
    """Names of --loggers that also receive the run's curves."""
    resume: Path | None = None
    """Folder of the run being resumed; None: a new run."""
    hyper: Hyper
    """Hyper-parameters, with the JSON's optimizer merged in."""
    deepspeed: DeepSpeedConfig
    """The resolved DeepSpeed JSON."""
    device: str
    """cpu or cuda."""
    run_dir: Path
    """Folder the run writes into; it may not exist yet."""
    given: tuple[tuple[str, Any], ...] = ()
    """Flags as typed, for the record."""
    notes: tuple[str, ...] = ()
    """Lines to show at the start: settings without effect, and values that override others."""
    check_data: bool = False
    """Whether this start compares every file with the last check of the data."""
    trace: int = 0
    """Steps of this start that are traced; 0: none."""
    run: str = ""
    """The run's identity over all its starts; "": none yet (`run_folder` assigns it)."""
    start: str = ""
    """The identity of the command that started it; the launcher's restarts keep it."""

    @property
    def batch_size(self) -> int:
        """Images per forward pass over all ranks."""
        return self.deepspeed.batches.batch

    @property
    def eval_batch(self) -> int:
        """Images per batch of an evaluation over all ranks: twice the batch, as in ultralytics."""
        return 2 * self.batch_size

    @property
    def seed(self) -> int:
        """Decides initial weights, sample order and augmentation."""
        return self.hyper.seed

    @property
    def weight_decay(self) -> float:
        """Decay of the weights that decay: a number in the JSON unchanged, else ultralytics' decay
        x batch x accumulation / nbs (engine/trainer.py)."""
        optimizer, decay = self.deepspeed.optimizer, self.hyper.weight_decay
        if optimizer is not None and optimizer.fixes_decay:
            return decay
        return decay * self.deepspeed.train_batch / self.hyper.nbs

    def for_initialize(self, bucket: int | None = None) -> dict[str, Any]:
        """The dictionary for `deepspeed.initialize`; a fresh copy.

        It has no "optimizer": yolods always builds the optimizer itself, because DeepSpeed would
        compile a kernel of its own for one that torch has.

        Args:
            bucket: "reduce_bucket_size" where the JSON has none, which depends on the model.
        """
        settings = self.deepspeed.for_initialize()
        settings.pop("optimizer", None)
        if bucket is not None:
            zero = settings.setdefault("zero_optimization", {})
            if zero.get("reduce_bucket_size") is None:
                zero["reduce_bucket_size"] = bucket
        return kept_within(self.run_dir, settings)

    @property
    def monitor_folders(self) -> dict[str, str]:
        """Environment variables that make DeepSpeed's services write into the run's folder."""
        return folder_variables(self.run_dir, self.deepspeed.for_initialize())

    @property
    def only_traced(self) -> bool:
        """Whether this start takes a few steps from a run's checkpoint and leaves the run as it
        is: it writes into another folder than the one it resumes."""
        return self.resume is not None and self.resume != self.run_dir

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return (self.resume or self.run_dir) / "checkpoints"

    @property
    def is_demo(self) -> bool:
        """Whether the run trains on the embedded data set."""
        return self.data == Path(DEMO)

    def to_json(self) -> str:
        """The text of config.json, fully resolved: `from_json` returns the same run."""
        config = self.deepspeed
        return json.dumps(
            {
                "run": self.run,
                "start": self.start,
                "data": str(self.data),
                "model": self.model,
                "weights": None if self.weights is None else str(self.weights),
                "epochs": self.epochs,
                "imgsz": self.imgsz,
                "batch_size": self.batch_size,
                "workers": self.workers,
                "project": str(self.project),
                "name": self.name,
                "exist_ok": self.exist_ok,
                "loggers": list(self.loggers),
                "device": self.device,
                "ranks": config.world_size,
                "hyper": self.hyper.as_dict(),
                "deepspeed_path": None if config.path is None else str(config.path),
                "deepspeed_given": config.raw,
                "deepspeed": config.for_initialize(),
                "yolods": config.own.as_dict(),
                "given": dict(self.given),
                "notes": list(self.notes),
            },
            indent=2,
        )

    @classmethod
    def from_json(cls, content: str | bytes, run_dir: Path) -> RunConfig:
        """Read config.json; `resume` of the result is `run_dir`, the folder that contains the file.

        Raises:
            UserError: the file is not a run's configuration, or has values that are no longer
                permitted.
        """
        where = run_dir / CONFIG_FILE
        try:
            saved = parse_json(content)
            faults = Faults()
            kept = [Given(key, value, f"hyper.{key}") for key, value in saved["hyper"].items()]
            # Old values pass the same rules as new ones: people edit the file, and rules change
            # with versions.
            hyper = read_hyper(None, [], faults, [*_of_before(saved["hyper"]), *kept]).hyper
            saved |= _checked(saved, faults)
            faults.raise_if_any(f"{where} cannot be used any more:")
            config = resolve(
                saved["deepspeed_given"],
                before=_batches_of(saved),
                path=None if saved["deepspeed_path"] is None else Path(saved["deepspeed_path"]),
                batch_size=saved["batch_size"],
                world_size=saved["ranks"],
                device=saved["device"],
                faults=faults,
                hyper=hyper,
            )
            faults.raise_if_any(f"{where} cannot be used any more:")
            return cls(
                data=Path(saved["data"]),
                model=saved["model"],
                weights=None if saved["weights"] is None else Path(saved["weights"]),
                epochs=saved["epochs"],
                imgsz=saved["imgsz"],
                workers=saved["workers"],
                project=Path(saved["project"]),
                name=saved["name"],
                exist_ok=saved["exist_ok"],
                loggers=tuple(map(str, saved.get("loggers") or ())),
                resume=run_dir,
                hyper=hyper,
                deepspeed=config,
                device=saved["device"],
                run_dir=run_dir,
                given=tuple(saved["given"].items()),
                notes=tuple(map(str, saved["notes"])),
                run=str(saved.get("run") or ""),
            )
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"{where}: not a run's configuration: {type(error).__name__}: {error}"
            ) from None


def _checked(saved: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """The settings of config.json in their own types; checked, because people edit the file."""
    found = {}
    for key, rule in _SAVED.items():
        good, value = check(rule, saved[key], key, faults)
        found |= {key: value} if good else {}
    for key in (MICRO, ACCUMULATION, TRAIN):
        check(whole(1), saved["deepspeed"][key], f"deepspeed.{key}", faults)
    return found


def _batches_of(saved: Mapping[str, Any]) -> BatchPlan | None:
    """The batch sizes in config.json; None if edited so that they no longer multiply out.

    After a resume under another layout, the flags alone would not give the same batch sizes.
    """
    settings, batch = saved["deepspeed"], saved["batch_size"]
    micro, steps = settings[MICRO], settings[ACCUMULATION]
    if batch % micro:
        return None
    # `auto` only matters for warm-up, which `plan_batches` decides again from the JSON.
    plan = BatchPlan(
        micro=micro, accumulation=steps, accumulation_auto=True, dp_size=batch // micro
    )
    return plan if plan.train_batch == settings[TRAIN] else None


def next_run_dir(project: Path, name: str, exist_ok: bool = False) -> Path:
    """The folder that a new run would get: project/name, or if that exists name2, name3 and so on.

    The folder is not created: until the run claims it (`run_folder`), another start may take it.

    Args:
        exist_ok: whether to return project/name even if it exists.
    """
    return next(
        folder for folder in numbered(project / name) if exist_ok or not os.path.lexists(folder)
    )


def numbered(folder: Path) -> Iterator[Path]:
    """The folder's name without and with a number: exp, exp2, exp3 and so on."""
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}{number}")


def _of_before(saved: Mapping[str, Any]) -> list[Given]:
    """Hyper-parameters that did not exist when the run started; it continues without them."""
    before = {"precise_bn": 0, "mosaic_partners": "all"}
    return [Given(key, value, f"hyper.{key}") for key, value in before.items() if key not in saved]
