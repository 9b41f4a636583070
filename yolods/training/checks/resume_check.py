"""What a checkpoint depends on, beside what the run that would go on from it has: refused, told, or equal.

Every checkpoint carries such a record in its model.json. A launcher compares what it can know before it starts a
process, and rank 0 all of it before anything is built. Needs neither torch nor ultralytics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolods.checkpoint.names import LATEST, MODEL, PROGRESS
from yolods.checkpoint.verify import end_of, names_in, nothing_in
from yolods.config import RunConfig
from yolods.data.classes import both, class_names, difference
from yolods.data.fingerprint import Change, Samples
from yolods.data.spec import read_spec
from yolods.errors import Faults, UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.parsing.json_file import parse_json
from yolods.parsing.rules import shown, whole
from yolods.system.humanize import plural
from yolods.system.versions import versions

SETTLED = ("seed", "optimizer", "freeze", "single_cls", "classes", "fraction")
"""Hyper-parameters that decide what a checkpoint's state means, or for which sample a position in the stream stands."""
_TOLD = {
    "batch": "a batch has {} images, and had {}: those of a step stay",
    "epochs": "the run is for {} epochs, and was for {}: learning rates follow the new number",
}
_ABOUT: Mapping[Change, str] = {
    "content": "but other ones, or with other boxes: the run goes on in its epoch with those that are there",
    "order": "but in another order: what is left of the epoch under way may show some of them twice and others not at "
    "all, and from the next epoch on each is shown once",
    "names": "and in the same order, but under other names: the run goes on exactly",
    "times": "of the same sizes and with the same boxes, but written anew: if only copied, the run goes on exactly",
}
RECORD = "depends"
"""The record's key in model.json."""

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Depends:
    """What a checkpoint depends on. What is None or empty is not known: by an older yolods, or not yet."""

    names: tuple[str, ...] | None = None
    """Class names in the order of their ids."""
    architecture: Facts | None = None
    """The model's layers, class count and channels, as it is built from."""
    settings: Facts = field(default_factory=dict)
    """model, imgsz, epochs, batch (images a forward pass) and step (images an optimizer step)."""
    hyper: Facts = field(default_factory=dict)
    """Every hyper-parameter."""
    optimizer: Facts = field(default_factory=dict)
    """The optimizer that trains, also where `auto` chose it: name, lr, momentum, warmup_bias_lr, arguments."""
    train: Samples | None = None
    """The training images."""
    val: Samples | None = None
    """The validation images."""
    versions: Facts = field(default_factory=dict)
    """Of what computes."""

    def record(self) -> dict[str, Any]:
        """For model.json, which has the names and the architecture already."""
        kept = {key: dict(getattr(self, key)) for key in ("settings", "hyper", "optimizer", "versions")}
        splits = {key: None if value is None else value.as_dict() for key, value in self._splits.items()}
        return json.loads(json.dumps({**kept, **splits}))

    @property
    def _splits(self) -> dict[str, Samples | None]:
        return {"train": self.train, "val": self.val}

    @property
    def is_whole(self) -> bool:
        """Whether a yolods that keeps such records wrote it."""
        return bool(self.versions)


@dataclass(frozen=True)
class Comparison:
    """What came out."""

    faults: tuple[str, ...] = ()
    """A line for each difference under which going on would be wrong."""
    notes: tuple[str, ...] = ()
    """A line for each other difference."""
    images_before: int | None = None
    """Training images that the checkpoint's position counts by; None: it does not say."""
    judged_on_others: bool = False
    """Whether the best fitness was measured on other validation images."""


def depends_on(config: RunConfig, **known: Any) -> Depends:
    """What a run's checkpoints depend on, as far as its configuration says.

    Args:
        known: further fields of `Depends`.
    """
    settings = {
        "model": config.model,
        "imgsz": config.imgsz,
        "epochs": config.epochs,
        "batch": config.batch_size,
        "step": config.deepspeed.train_batch,
    }
    return Depends(settings=settings, hyper=config.hyper.as_dict(), versions=versions(), **known)


def read_depends(model: Facts) -> Depends:
    """The record in a checkpoint's model.json; of an older yolods, what else the file says.

    Args:
        model: the file's content.
    """
    record = model.get(RECORD)
    basic = Depends(names=tuple(model["names"]), architecture=dict(model["architecture"]))
    if record is None:
        told = model.get("train_args", {})
        settings = {key: told[key] for key in ("model", "imgsz", "epochs", "batch") if key in told}
        return replace(basic, settings=settings, hyper=told)
    splits = {key: None if record[key] is None else Samples(**record[key]) for key in ("train", "val")}
    kept = {key: dict(record[key]) for key in ("settings", "hyper", "optimizer", "versions")}
    return replace(basic, **kept, **splits)


def compare(before: Depends, now: Depends, run: Path, data: Path) -> Comparison:
    """Hold a run beside the checkpoint that it is to go on from.

    Args:
        before: of the checkpoint.
        now: of the run; what is not known yet is not compared.
        run: the run's folder, for messages.
        data: the data yaml, for messages.
    """
    faults, notes = Faults(), Faults()
    _compare_names(before, now, run, data, faults, notes)
    _compare_models(before, now, run, faults)
    _compare_settings(before, now, run, faults, notes)
    if not before.is_whole:
        notes.add(
            f"{run}: its checkpoint is of an older yolods and does not say by which images, optimizer and versions it "
            "was made: whether they are the same is not known"
        )
    _compare_train(before, now, notes)
    judged_on_others = _compare_val(before, now, notes)
    for package, number in now.versions.items():
        if (had := before.versions.get(package, number)) != number:
            notes.add(f"{package} is {number}, and was {had}: the run goes on, but not bit for bit as it would have")
    images_before = None if before.train is None else before.train.count
    return Comparison(tuple(faults), tuple(notes), images_before, judged_on_others)


def check_before_start(config: RunConfig, faults: Faults) -> None:
    """Refuse a resume that ranks would refuse, by what lies beside the newest checkpoint.

    Args:
        config: of the run to go on with.
        faults: takes a line for each thing that has changed and under which the run cannot go on; or that it is over.
    """
    folder = config.run_dir / "checkpoints"
    if not names_in(folder, config.run):
        faults.add(nothing_in(folder))
        return
    left = _left_in(folder, config.run)
    if left is None:  # ranks look for another one
        return
    before, progress = left
    if is_over(config, progress["step"], progress["epochs_done"]):
        faults.add(finished(config))
    for line in compare(before, depends_on(config, **_known(config)), config.run_dir, config.data).faults:
        faults.add(line)


def _known(config: RunConfig) -> Facts:
    """Names and layers, as far as files tell them that can be read; where one cannot, that is said elsewhere."""
    if config.is_demo:
        return {}
    with suppress(UserError):
        spec = read_spec(config.data)
        names = class_names(spec, config.hyper)
        return {"names": names, "architecture": architecture(parse_name(config.model), len(names), spec.channels)}
    return {}


def is_over(config: RunConfig, step: int, epochs_done: int) -> bool:
    """Whether the run has nothing left to do after a step, its last words included."""
    end = end_of(config.run_dir / "checkpoints")
    over = end is not None and (end.run, end.step, end.status) == (config.run, step, 0)
    return over and epochs_done >= config.epochs


def finished(config: RunConfig) -> str:
    """The line about a run that is over."""
    return f"--resume: {config.run_dir} has finished its {config.epochs} epochs; give more by --epochs to go on"


def _left_in(folder: Path, run: str) -> tuple[Depends, Facts] | None:
    """What the newest checkpoint depends on, and its progress; None where it is damaged, or another run's."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        newest = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
        model, progress = (parse_json((newest / name).read_bytes()) for name in (MODEL, PROGRESS))
        if progress.get("run", "") == run:
            return read_depends(model), {key: whole(0).parse(progress[key]) for key in ("step", "epochs_done")}
    return None


def _compare_names(before: Depends, now: Depends, run: Path, data: Path, faults: Faults, notes: Faults) -> None:
    if before.names is None or now.names is None:
        return
    what = difference(before.names, now.names)
    had, has = both(before.names, now.names)
    remedy = f"put the names back, or start another run from these weights: --weights {run}/weights/last.pt"
    if what == "count":
        faults.add(f"{data} names {has}, but the run in {run} has {had}: its class head has another size; {remedy}")
    elif what == "order":
        faults.add(f"{data} names {has}, but the run in {run} has {had}: the same names have other ids; {remedy}")
    elif what == "names":
        notes.add(f"{data} names {has}, and named {had}: the run goes on under the new names; ids and labels count")


def _compare_models(before: Depends, now: Depends, run: Path, faults: Faults) -> None:
    had, has = before.settings.get("model"), now.settings.get("model")
    if before.architecture is not None and now.architecture is not None:
        apart = _first_difference(before.architecture, json.loads(json.dumps(now.architecture)))
        if apart is None:
            return
        where, was, is_now = apart
        faults.add(
            f"the model {has} has {shown(is_now)} as its {where}, but that of the run in {run} has {shown(was)}; "
            f"put it back, or start another run from these weights: --weights {run}/weights/last.pt"
        )
    elif had is not None and had != has:
        faults.add(_edited("model", has, had, run))


def _first_difference(had: Any, has: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place in which two architectures differ; how many classes they have is told by their names."""
    if isinstance(had, Mapping) and isinstance(has, Mapping):
        for key in dict.fromkeys([*had, *has]):
            if key not in ("nc", "names") and (apart := _first_difference(had.get(key), has.get(key), str(key))):
                return apart
        return None
    if isinstance(had, list) and isinstance(has, list) and where in ("backbone", "head"):
        for place in range(max(len(had), len(has))):
            one, other = (layers[place] if place < len(layers) else None for layers in (had, has))
            if one != other:
                return f"{where}'s layer {place}", one, other
        return None
    return None if had == has else (where, had, has)


def _compare_settings(before: Depends, now: Depends, run: Path, faults: Faults, notes: Faults) -> None:
    for key, what in (("imgsz", "imgsz"), ("step", "images a step")):
        if before.settings.get(key, now.settings.get(key)) != now.settings.get(key):
            faults.add(_edited(what, now.settings[key], before.settings[key], run))
    for key, what in _TOLD.items():
        if before.settings.get(key, now.settings.get(key)) != now.settings.get(key):
            notes.add(what.format(now.settings[key], before.settings[key]))
    for key, has in json.loads(json.dumps(dict(now.hyper))).items():
        if (had := before.hyper.get(key, has)) == has:
            continue
        if key in SETTLED:
            faults.add(_edited(key, has, had, run))
        else:
            notes.add(f"{key} is {shown(has)}, and was {shown(had)}: the run goes on with {shown(has)}")
    _compare_optimizers(before, now, notes)


def _compare_optimizers(before: Depends, now: Depends, notes: Faults) -> None:
    had, has = before.optimizer, json.loads(json.dumps(dict(now.optimizer)))
    if not (had and has):
        return
    if now.hyper["optimizer"] == "auto" and had != has:
        one, other = (f"{each['name']} at {each['lr']:g}" for each in (has, had))
        notes.add(f"optimizer=auto would stand for {one} by now, and stood for {other}: the run goes on with {other}")
    elif had["arguments"] != has["arguments"]:
        one, other = (shown(each["arguments"]) for each in (has, had))
        notes.add(f"{has['name']} has the arguments {one}, and had {other}: the run goes on with the new ones")


def _edited(what: str, has: Any, had: Any, run: Path) -> str:
    return (
        f"{what} is {shown(has)}, but the checkpoint of the run in {run} was made with {shown(had)}; put that back to "
        "go on with the run, or start another"
    )


def _compare_train(before: Depends, now: Depends, notes: Faults) -> None:
    """Tell of other training images."""
    if before.train is None or now.train is None or not (what := now.train.change_from(before.train)):
        return
    had, has = before.train.count, now.train.count
    if what == "count":
        notes.add(
            f"train has {plural(has, 'image')}, and had {had}: the epochs behind count as they are, the one under way "
            f"begins anew, and from here on an epoch is {plural(has, 'image')}"
        )
    else:
        notes.add(f"train has {plural(has, 'image')} as before, {_ABOUT[what]}")


def _compare_val(before: Depends, now: Depends, notes: Faults) -> bool:
    """Tell of other validation images; whether metrics can no longer be compared."""
    if before.val is None or now.val is None or not (what := now.val.change_from(before.val)):
        return False
    if what not in ("count", "content"):
        return False
    had, has = before.val.count, now.val.count
    which = f"has {plural(has, 'image')}, and had {had}"
    if what == "content":
        which = f"has {plural(has, 'image')} as before, but other ones"
    notes.add(f"val {which}: metrics cannot be compared with those of earlier epochs, so the best is chosen anew")
    return True
