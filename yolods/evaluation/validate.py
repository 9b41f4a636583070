"""`yolods val`: evaluates a saved model as the training run does, on any number of ranks."""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolods.config.build import WRITTEN, read_folder
from yolods.config.deepspeed.batch import DEFAULT_BATCH
from yolods.config.flags import EVALUATION
from yolods.config.hyper.hyperparameters import RULES, Hyper, read_hyper
from yolods.config.names.data_name import shipped_yaml
from yolods.config.names.recipes import find_json
from yolods.config.run import CONFIG_FILE, DEMO, NUMBERS
from yolods.config.run_folder import make_folder, writable
from yolods.data.classes import both, check_classes, class_names, difference
from yolods.data.demo import COUNTS, NAMES
from yolods.data.spec import read_spec
from yolods.data.splits import SplitOptions, most_boxes, open_split, read_data
from yolods.distributed.phases import PHASES
from yolods.distributed.world import Ranks, Share
from yolods.errors import Faults, UserError
from yolods.evaluation.evaluator import Evaluation, Evaluator, PlainDetector
from yolods.model.architecture.build import has_plain_head
from yolods.model.weights import read_pt
from yolods.parsing.json_file import read_json
from yolods.parsing.rules import check
from yolods.stats import METRIC_NAMES
from yolods.telemetry import NullTelemetry, RunTelemetry, Telemetry

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.json"


@dataclass(frozen=True)
class ValRequest:
    """The checked arguments of `yolods val`."""

    weights: Path
    """The .pt file to evaluate."""
    data: Path
    """The data yaml, or Path("demo")."""
    split: str
    """Split of the data."""
    hyper: Hyper
    """Hyper-parameters of the evaluation."""
    notes: tuple[str, ...] = ()
    """Lines to show at the start."""


def check_val_arguments(args: argparse.Namespace) -> ValRequest:
    """Check the arguments, the data yaml and the weights before anything is evaluated.

    The launcher does so before it starts a process, and the ranks do so again.

    Raises:
        UserError: all faults, one line each.
    """
    faults = Faults()
    for fault in getattr(args, "faults", ()):  # found by the parser
        faults.add(fault)
    _check_numbers(args, faults)
    notes = _check_json(args, faults)
    _check_folder(args, faults)
    hyper = _read_settings(args, faults)
    split = args.split or "val"
    net = _find_model(args, faults)
    data = _find_data(args, net, faults)
    classes = None if data is None else _find_names(data, split, hyper, faults)
    renamed: tuple[str, ...] = ()
    if net is not None and classes is not None:
        names, where = classes
        # ultralytics calls the only class "item".
        trained = ("item",) if hyper.single_cls else names
        renamed = _compare_names(net, Path(args.weights), trained, where, faults)
    faults.raise_if_any()
    assert data is not None
    # With a single class, only the number of classes matters.
    notes = notes if hyper.single_cls else (*notes, *renamed)
    return ValRequest(Path(args.weights), data, split, hyper, notes)


def _read_settings(args: argparse.Namespace, faults: Faults) -> Hyper:
    """The hyper-parameters of --set; adds a fault for each that an evaluation does not use."""
    read = read_hyper(None, args.set or [], faults)
    for key, where in read.commanded.items():
        if key in RULES and key not in EVALUATION:
            faults.add(f"{where} has no effect on val, which uses {', '.join(EVALUATION)}; omit it")
    return read.hyper


def _check_folder(args: argparse.Namespace, faults: Faults) -> None:
    folder = _folder(args, faults)
    if args.exist_ok and (folder / CONFIG_FILE).exists():
        faults.add(
            f"--exist-ok: {folder} is the folder of a training run and would be overwritten; "
            "choose another --name"
        )


def _check_numbers(args: argparse.Namespace, faults: Faults) -> None:
    for key in ("batch_size", "imgsz", "workers"):
        if (value := getattr(args, key)) is not None:
            good, _ = check(NUMBERS[key], value, WRITTEN[key], faults)
            if good and key == "imgsz" and value % 32:
                faults.add(f"--imgsz {value}: must be a multiple of 32")


def _find_model(args: argparse.Namespace, faults: Faults) -> DetectionModel | None:
    """The model in --weights, fp32 and on the CPU; None, with a fault, if it cannot be read."""
    if args.weights is None:
        faults.add(
            "--weights is missing: name the .pt to evaluate, for example runs/exp/weights/best.pt"
        )
    elif not Path(args.weights).is_file():
        faults.add(f"--weights {args.weights}: no such file")
    else:
        with faults.caught():
            return _read_model(Path(args.weights))
    return None


def _find_data(args: argparse.Namespace, net: DetectionModel | None, faults: Faults) -> Path | None:
    """The data yaml, from --data or the weights; None, with a fault, if there is none."""
    if args.data is None and net is None:
        if args.weights is None:
            faults.add(
                "--data is missing: name a data yaml, or use --data demo for the embedded data set"
            )
        return None
    if args.data is None:
        with faults.caught():
            return _stored_data(net, Path(args.weights))
        return None
    if args.data != DEMO and not (Path(args.data).is_file() or shipped_yaml(Path(args.data))):
        faults.add(f"--data {args.data}: no such file")
        return None
    return Path(args.data)


def _find_names(
    data: Path, split: str, hyper: Hyper, faults: Faults
) -> tuple[Sequence[str], str] | None:
    """Class names of the data and their source; None, with faults, if the data cannot be read."""
    with faults.caught():
        if data == Path(DEMO):
            names, where = NAMES, DEMO
            if split not in COUNTS:
                faults.add(
                    f"--split {split}: the demo data has no {split} images; use "
                    f"{' or '.join(COUNTS)}"
                )
        else:
            spec = read_spec(data)
            names, where = spec.names, str(spec.yaml)
            if not (spec.needs_download or spec.sources(split)):
                faults.add(
                    f"--split {split}: {where} names no {split} images; add `{split}: FOLDER`"
                )
        check_classes(names, where, hyper.classes)
        return names, where
    return None


def _check_json(args: argparse.Namespace, faults: Faults) -> tuple[str, ...]:
    """Read the DeepSpeed JSON for its faults only; returns the line that says so."""
    if args.deepspeed_config is None:
        return ()
    before, where = len(faults), f"--deepspeed_config {args.deepspeed_config}"
    found = find_json(args.deepspeed_config, faults)
    if len(faults) == before:
        read_json(found, where, faults)
    return (
        f"{where} has no effect: evaluation runs in fp32, with the complete model on each rank",
    )


def _read_model(weights: Path) -> DetectionModel:
    """The model in a .pt, fp32 and on the CPU.

    Raises:
        UserError: there is no model, or it is not a YOLOv5u detector.
    """
    net = read_pt(weights)
    if not has_plain_head(net):
        head = type(net.model[-1]).__name__
        raise UserError(
            f"--weights {weights}: its {head} head is not YOLOv5u's; evaluate it with ultralytics"
        )
    return net


def _stored_data(net: DetectionModel, weights: Path) -> Path:
    """The data yaml that a model was trained with, as stored in its .pt."""
    stored = getattr(net, "args", {}).get("data")
    if not isinstance(stored, str):
        raise UserError(
            f"--data is missing, and {weights} does not name its training data; add --data"
        )
    if stored != DEMO and not (Path(stored).is_file() or shipped_yaml(Path(stored))):
        raise UserError(
            f"--data is missing, and {stored}, the training data of {weights}, is not here; add "
            "--data"
        )
    return Path(stored)


def _compare_names(
    net: DetectionModel, weights: Path, names: Sequence[str], data: str, faults: Faults
) -> tuple[str, ...]:
    """Compare the classes of a model with those of the data: results follow ids and are shown with
    names.

    Args:
        faults: receives a line if the number of classes differs, or a name in both has another id.

    Returns:
        a line if ids have other names.
    """
    known = net.names if isinstance(net.names, Mapping) else dict(enumerate(net.names))
    had = [str(known.get(place, place)) for place in range(net.model[-1].nc)]
    what = difference(had, names)
    knows, has = both(had, names)
    beside = f"--weights {weights} has {knows}, but {data} names {has}"
    if what == "count":
        faults.add(f"{beside}; use the data yaml of its training")
    elif what == "order":
        faults.add(
            f"{beside}: the same names have other ids, so that classes would be confused; put the "
            "names and the labels into the order of the weights"
        )
    elif what == "names":
        return (f"{beside}: results follow ids and are shown with the data's names",)
    return ()


def validate(args: argparse.Namespace, ranks: Ranks) -> Evaluation | None:
    """Evaluate `args.weights` on a split of `args.data`. A collective.

    Returns:
        the result on rank 0, None elsewhere.
    """
    # The launcher has checked the arguments, but ranks may be started without it.
    request = ranks.main_first(lambda: check_val_arguments(args))
    hyper = request.hyper
    net = _read_model(request.weights)
    spec = read_data(request.data, ranks)
    names = class_names(spec.names, hyper)
    options = _options(args, net, ranks)
    split = open_split(spec, request.split, hyper, options, ranks, augment=False)
    # After the data are opened, so that a fault in them leaves no empty folder.
    run_dir = ranks.main_first(lambda: _make(args))
    with _open_telemetry(run_dir, names, ranks) as telemetry:
        for note in request.notes:
            telemetry.event("note", note, warn=True)
        evaluator = Evaluator(
            split.dataset,
            names,
            replace(hyper, max_det=most_boxes(hyper.max_det, split)),
            ranks,
            share=Share(ranks.rank, ranks.size),
            forward_batch=math.ceil(options.eval_batch / ranks.size),
            workers=options.workers,
            save_dir=run_dir,
        )
        PHASES.started()
        result = evaluator(
            PlainDetector(net.fuse(verbose=False), hyper, ranks.device),  # fused as in `yolo val`
            plots=hyper.plots,
            pictures=hyper.plots,
            final=True,
            boxes_to=run_dir / PREDICTIONS_FILE if args.save_json else None,
            telemetry=telemetry,
        )
        if result is not None:
            facts = {
                "weights": str(request.weights),
                "data": str(spec.yaml),
                "split": request.split,
                "imgsz": options.imgsz,
            }
            _write_metrics(run_dir / METRICS_FILE, {**facts, **_numbers(result, names)})
            telemetry.evaluated(
                {**result.metrics, **{f"val/{name}": value for name, value in result.loss.items()}}
            )
        telemetry.event("results", f"Results saved to {run_dir}")
    return result


def _options(args: argparse.Namespace, net: DetectionModel, ranks: Ranks) -> SplitOptions:
    """How the evaluation reads images: by default in the size that the model was trained in."""
    return SplitOptions(
        imgsz=args.imgsz or int(getattr(net, "args", {}).get("imgsz", 640)),
        stride=max(int(max(net.stride)), 32),
        epochs=1,
        workers=args.workers or 0,
        check_data=bool(args.check_data),
        local_ranks=ranks.local_size,
        eval_batch=args.batch_size or DEFAULT_BATCH,
    )


def _open_telemetry(run_dir: Path, names: Sequence[str], ranks: Ranks) -> Telemetry:
    if not ranks.is_main:
        return NullTelemetry()
    return RunTelemetry(
        run_dir, names=dict(enumerate(names)), epochs=1, images_per_epoch=1, batch_size=1
    )


def _folder(args: argparse.Namespace, faults: Faults) -> Path:
    """The folder for the results."""
    project, name, _ = read_folder(args, faults, default="val")
    return project / name


def _make(args: argparse.Namespace) -> Path:
    """Create a new folder, or use the existing one with --exist-ok."""
    folder = _folder(args, Faults())
    with writable(folder):
        return make_folder(folder, bool(args.exist_ok))


def _numbers(result: Evaluation, names: Sequence[str]) -> dict[str, Any]:
    """The content of metrics.json: results over all classes, and for each class with boxes."""
    details = result.details
    classes = {
        names[index]: {
            "instances": int(details.nt_per_class[index]),
            **dict(zip(METRIC_NAMES, map(float, details.class_result(place)), strict=True)),
        }
        for place, index in enumerate(details.ap_class_index)
    }
    return {
        "images": result.images,
        "metrics": result.metrics,
        "fitness": result.fitness,
        "loss": result.loss,
        "classes": classes,
        "seconds": round(result.seconds, 3),
    }


def _write_metrics(path: Path, content: Mapping[str, Any]) -> None:
    """Write metrics.json; a full disk only costs a warning, since the screen shows the numbers."""
    try:
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    except OSError as error:
        log.warning("%s could not be written: %s", path, error.strerror or error)
