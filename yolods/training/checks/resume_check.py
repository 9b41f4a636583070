"""Compares what a checkpoint depends on with the run that would resume it: a difference is refused
or reported.

A checkpoint contains such a record in its model.json (older versions wrote none). The launcher
compares what it can read before it starts a process; rank 0 compares all of it before anything is
built. Needs neither torch nor ultralytics.
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
from yolods.data.index.fingerprint import Change, Samples
from yolods.data.spec import read_spec
from yolods.errors import Faults, UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.parsing.json_file import parse_json
from yolods.parsing.rules import shown, whole
from yolods.system.humanize import plural
from yolods.system.versions import versions

SETTLED = ("seed", "optimizer", "freeze", "single_cls", "classes", "fraction")
"""Hyper-parameters that give meaning to a checkpoint's state or position; they must not change."""
_TOLD = {
    "batch": "a batch has {} images instead of {}: the images per step do not change",
    "epochs": "the run has {} epochs instead of {}: learning rates follow the new number",
}
_ABOUT: Mapping[Change, str] = {
    "content": (
        "but different ones, or with different boxes: the run continues its epoch with the present "
        "ones"
    ),
    "order": (
        "but in another order: the rest of the current epoch may show some of them twice and "
        "others not at all; from the next epoch on, each is shown once"
    ),
    "names": "and in the same order, but under other names: the run continues exactly",
    "times": (
        "of the same sizes and with the same boxes, but rewritten: if only copied, the run "
        "continues exactly"
    ),
}
_PARTNERS_BEFORE = "all"
"""Where mosaic partners came from before there was a choice."""
RECORD = "depends"
"""The record's key in model.json."""

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Depends:
    """What a checkpoint depends on. None or empty: unknown to an older yolods, or not read yet."""

    names: tuple[str, ...] | None = None
    """Class names in the order of their ids."""
    architecture: Facts | None = None
    """The model's layers, class count and channels, from which it is built."""
    settings: Facts = field(default_factory=dict)
    """model, imgsz, epochs, batch (images per forward pass), step (images per optimizer step)."""
    hyper: Facts = field(default_factory=dict)
    """Every hyper-parameter."""
    optimizer: Facts = field(default_factory=dict)
    """The optimizer, also if `auto` chose it: name, lr, momentum, warmup_bias_lr, arguments."""
    partners: str = ""
    """Where mosaic partners come from, also if `auto` chose it: all or block."""
    train: Samples | None = None
    """The training images."""
    val: Samples | None = None
    """The validation images."""
    versions: Facts = field(default_factory=dict)
    """Versions of the packages that compute."""

    def record(self) -> dict[str, Any]:
        """The entry in model.json, which already has the names and the architecture."""
        kept = {
            key: dict(getattr(self, key)) for key in ("settings", "hyper", "optimizer", "versions")
        }
        splits = {
            key: None if value is None else value.as_dict() for key, value in self._splits.items()
        }
        return _as_read({**kept, "partners": self.partners, **splits})

    @property
    def _splits(self) -> dict[str, Samples | None]:
        return {"train": self.train, "val": self.val}

    @property
    def is_whole(self) -> bool:
        """Whether the record is complete; older versions of yolods wrote none."""
        return bool(self.versions)


@dataclass(frozen=True)
class Comparison:
    """The differences between a checkpoint and the run that resumes it."""

    faults: tuple[str, ...] = ()
    """One line per difference that prevents a resume."""
    notes: tuple[str, ...] = ()
    """One line per other difference."""
    images_before: int | None = None
    """Number of training images that the checkpoint's position refers to; None if unknown."""
    judged_on_others: bool = False
    """Whether the best fitness was measured on other validation images."""


def depends_on(config: RunConfig, **known: Any) -> Depends:
    """What a run's checkpoints depend on, as far as its configuration tells.

    Args:
        known: other fields of `Depends`.
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
    """The record in a checkpoint's model.json; without one (an older yolods), what `train_args`
    tells.

    Args:
        model: the content of model.json.
    """
    record = model.get(RECORD)
    basic = Depends(names=tuple(model["names"]), architecture=dict(model["architecture"]))
    if record is None:
        told = model.get("train_args", {})
        settings = {key: told[key] for key in ("model", "imgsz", "epochs", "batch") if key in told}
        return replace(basic, settings=settings, hyper=told, partners=_PARTNERS_BEFORE)
    splits = {
        key: None if record[key] is None else Samples(**record[key]) for key in ("train", "val")
    }
    kept = {key: dict(record[key]) for key in ("settings", "hyper", "optimizer", "versions")}
    # Before `auto` there were only these two, and before them only one.
    partners = record.get("partners") or kept["hyper"].get("mosaic_partners", _PARTNERS_BEFORE)
    return replace(basic, **kept, **splits, partners=partners)


def compare(before: Depends, now: Depends, run: Path, data: Path) -> Comparison:
    """Compare a run with the checkpoint that it resumes.

    Args:
        before: the checkpoint's record.
        now: the run's; fields that are not known yet are not compared.
        run: the run's folder, for messages.
        data: the data yaml, for messages.
    """
    faults, notes = Faults(), Faults()
    _compare_names(before, now, run, data, faults, notes)
    _compare_models(before, now, run, faults)
    _compare_settings(before, now, run, faults, notes)
    if not before.is_whole:
        notes.add(
            f"{run}: its checkpoint was written by an older yolods and does not record the images, "
            "optimizer and versions: changes of these cannot be detected"
        )
    _compare_train(before, now, notes)
    judged_on_others = _compare_val(before, now, notes)
    for package, number in now.versions.items():
        if (had := before.versions.get(package, number)) != number:
            notes.add(
                f"{package} is {number} instead of {had}: the run continues, but not bit for bit"
            )
    images_before = None if before.train is None else before.train.count
    return Comparison(tuple(faults), tuple(notes), images_before, judged_on_others)


def check_before_start(config: RunConfig, faults: Faults) -> None:
    """Refuse in the launcher what ranks would refuse at a resume, using the newest checkpoint's
    JSON files.

    Args:
        config: the run to resume.
        faults: receives one line per change that prevents a resume, or the line that the run is
            finished.
    """
    folder = config.checkpoints
    if not names_in(folder, config.run):
        faults.add(nothing_in(folder))
        return
    left = _left_in(folder, config.run)
    if left is None:  # damaged: ranks search for an earlier one, with checksums
        return
    before, progress = left
    if is_over(config, progress["step"], progress["epochs_done"]) and not config.only_traced:
        faults.add(finished(config))
    run = folder.parent
    for line in compare(before, depends_on(config, **_known(config)), run, config.data).faults:
        faults.add(line)


def _known(config: RunConfig) -> Facts:
    """Class names and layers, if the files can be read; an unreadable one is reported elsewhere."""
    if config.is_demo:
        return {}
    with suppress(UserError):
        spec = read_spec(config.data)
        names = class_names(spec.names, config.hyper)
        return {
            "names": names,
            "architecture": architecture(parse_name(config.model), len(names), spec.channels),
        }
    return {}


def is_over(config: RunConfig, step: int, epochs_done: int) -> bool:
    """Whether the run has nothing left to do after this step, its final validation included."""
    end = end_of(config.checkpoints)
    over = end is not None and (end.run, end.step, end.status) == (config.run, step, 0)
    return over and epochs_done >= config.epochs


def finished(config: RunConfig) -> str:
    """The message about a finished run."""
    return (
        f"--resume: {config.run_dir} has finished its {config.epochs} epochs; use a larger "
        "--epochs to continue"
    )


def _left_in(folder: Path, run: str) -> tuple[Depends, Facts] | None:
    """Record and progress of the newest checkpoint; None if it is damaged or another run's."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        newest = folder / (folder / LATEST).read_text(encoding="utf-8").strip()
        model, progress = (parse_json((newest / name).read_bytes()) for name in (MODEL, PROGRESS))
        if progress.get("run", "") == run:
            return read_depends(model), {
                key: whole(0).parse(progress[key]) for key in ("step", "epochs_done")
            }
    return None


def _compare_names(
    before: Depends, now: Depends, run: Path, data: Path, faults: Faults, notes: Faults
) -> None:
    if before.names is None or now.names is None:
        return
    what = difference(before.names, now.names)
    had, has = both(before.names, now.names)
    remedy = (
        f"restore the names, or start a new run from these weights: --weights {run}/weights/last.pt"
    )
    if what == "count":
        faults.add(
            f"{data} names {has}, but the run in {run} has {had}: the class head has another size; "
            f"{remedy}"
        )
    elif what == "order":
        faults.add(
            f"{data} names {has}, but the run in {run} has {had}: the same names have other ids; "
            f"{remedy}"
        )
    elif what == "names":
        notes.add(
            f"{data} names {has} instead of {had}: the run continues with the new names; only ids "
            "matter"
        )


def _as_read(facts: Facts) -> dict[str, Any]:
    """The facts as a record that was read from a file has them: tuples are lists."""
    return json.loads(json.dumps(dict(facts)))


def _compare_models(before: Depends, now: Depends, run: Path, faults: Faults) -> None:
    """Refuse another architecture or, where one of the two is not known, another model's name."""
    had, has = before.settings.get("model"), now.settings.get("model")
    if before.architecture is not None and now.architecture is not None:
        apart = _first_difference(before.architecture, _as_read(now.architecture))
        if apart is None:
            return
        where, was, is_now = apart
        faults.add(
            f"the model {has} has {shown(is_now)} as its {where}, but the model of the run in "
            f"{run} has {shown(was)}; restore it, or start a new run from these weights: --weights "
            f"{run}/weights/last.pt"
        )
    elif had is not None and had != has:
        faults.add(_edited("model", has, had, run))


def _first_difference(had: Any, has: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place where two architectures differ: (place, before, now), or None.

    The number of classes is ignored, because the comparison of class names reports it.
    """
    if isinstance(had, Mapping) and isinstance(has, Mapping):
        for key in dict.fromkeys([*had, *has]):
            if key not in ("nc", "names") and (
                apart := _first_difference(had.get(key), has.get(key), str(key))
            ):
                return apart
        return None
    if isinstance(had, list) and isinstance(has, list) and where in ("backbone", "head"):
        for place in range(max(len(had), len(has))):
            one, other = (layers[place] if place < len(layers) else None for layers in (had, has))
            if one != other:
                return f"{where}'s layer {place}", one, other
        return None
    return None if had == has else (where, had, has)


def _compare_settings(
    before: Depends, now: Depends, run: Path, faults: Faults, notes: Faults
) -> None:
    for key, what in (("imgsz", "imgsz"), ("step", "images per step")):
        if before.settings.get(key, now.settings.get(key)) != now.settings.get(key):
            faults.add(_edited(what, now.settings[key], before.settings[key], run))
    for key, what in _TOLD.items():
        if before.settings.get(key, now.settings.get(key)) != now.settings.get(key):
            notes.add(what.format(now.settings[key], before.settings[key]))
    for key, has in _as_read(now.hyper).items():
        if (had := before.hyper.get(key, has)) == has:
            continue
        if key in SETTLED:
            faults.add(_edited(key, has, had, run))
        else:
            notes.add(
                f"{key} is {shown(has)} instead of {shown(had)}: the run continues with "
                f"{shown(has)}"
            )
    _compare_optimizers(before, now, notes)
    auto = now.hyper["mosaic_partners"] == "auto" and now.partners
    if auto and now.partners != before.partners:
        notes.add(
            f"mosaic_partners=auto would now choose {now.partners}, and chose {before.partners} "
            f"before: the run continues with {before.partners}"
        )


def _compare_optimizers(before: Depends, now: Depends, notes: Faults) -> None:
    had, has = before.optimizer, _as_read(now.optimizer)
    if not (had and has):
        return
    if now.hyper["optimizer"] == "auto" and had != has:
        one, other = (f"{each['name']} at {each['lr']:g}" for each in (has, had))
        notes.add(
            f"optimizer=auto would now choose {one}, and chose {other} before: the run continues "
            f"with {other}"
        )
    elif had["arguments"] != has["arguments"]:
        one, other = (shown(each["arguments"]) for each in (has, had))
        notes.add(
            f"{has['name']} has the arguments {one} instead of {other}: the run continues with the "
            "new ones"
        )


def _edited(what: str, has: Any, had: Any, run: Path) -> str:
    return (
        f"{what} is {shown(has)}, but the checkpoint of the run in {run} was made with "
        f"{shown(had)}; restore that to continue the run, or start a new one"
    )


def _compare_train(before: Depends, now: Depends, notes: Faults) -> None:
    """Note changes of the training images."""
    if (
        before.train is None
        or now.train is None
        or not (what := now.train.change_from(before.train))
    ):
        return
    had, has = before.train.count, now.train.count
    if what == "count":
        notes.add(
            f"train has {plural(has, 'image')} instead of {had}: the completed epochs count, the "
            f"current one starts over, and from here on an epoch has {plural(has, 'image')}"
        )
    else:
        notes.add(f"train has {plural(has, 'image')} as before, {_ABOUT[what]}")


def _compare_val(before: Depends, now: Depends, notes: Faults) -> bool:
    """Note changes of the validation images; True if metrics can no longer be compared."""
    if before.val is None or now.val is None or not (what := now.val.change_from(before.val)):
        return False
    if what not in ("count", "content"):
        return False
    had, has = before.val.count, now.val.count
    which = f"has {plural(has, 'image')} instead of {had}"
    if what == "content":
        which = f"has {plural(has, 'image')} as before, but different ones"
    notes.add(
        f"val {which}: metrics cannot be compared with earlier epochs, so the best epoch is reset"
    )
    return True
