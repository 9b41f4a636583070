"""`yolods val`: judge a saved model as the training run would, on any number of ranks."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path

from yolods.cluster.pulse import PULSE
from yolods.cluster.ranks import Ranks, Share
from yolods.config.batch import DEFAULT_BATCH
from yolods.config.claim import make_folder, writable
from yolods.config.data_name import shipped_yaml
from yolods.config.hyper import RULES, Hyper, read_hyper
from yolods.config.run import CONFIG_FILE
from yolods.data.classes import class_names
from yolods.data.spec import DataSpec, check_classes, read_spec
from yolods.data.splits import Opening, most_boxes, open_split, read_data
from yolods.errors import Faults, UserError
from yolods.evaluate import Evaluation, Evaluator, PlainDetector
from yolods.model.build import has_plain_head
from yolods.model.weights import check_file, read_pt
from yolods.telemetry import NullTelemetry, RunTelemetry

PREDICTIONS_FILE = "predictions.json"
USED = ("conf", "iou", "max_det", "agnostic_nms", "single_cls", "classes", "plots", "box", "cls", "dfl")
"""Hyper-parameters that an evaluation goes by; the last three weigh its losses."""


def check_val_arguments(args: argparse.Namespace) -> Hyper:
    """Everything that can be known wrong before a process starts.

    Raises:
        UserError: a line a fault.
    """
    faults = Faults()
    for fault in getattr(args, "faults", ()):  # of the words themselves
        faults.add(fault)
    if args.weights is None:
        faults.add("--weights is missing: give the .pt to evaluate, for example runs/exp/weights/best.pt")
    elif not Path(args.weights).is_file():
        faults.add(f"--weights {args.weights}: no such file")
    if args.data is None:
        faults.add("--data is missing: give a data yaml, or --data demo for the embedded data set")
    elif args.data != "demo" and not (Path(args.data).is_file() or shipped_yaml(Path(args.data))):
        faults.add(f"--data {args.data}: no such file")
    if args.batch_size is not None and args.batch_size < 1:
        faults.add(f"--batch-size {args.batch_size}: has to be at least 1")
    if args.imgsz is not None and (args.imgsz < 32 or args.imgsz % 32):
        faults.add(f"--imgsz {args.imgsz}: has to be a multiple of 32")
    if args.exist_ok and (_folder(args) / CONFIG_FILE).exists():
        faults.add(
            f"--exist-ok: {_folder(args)} is a training run's folder, whose results would be overwritten; choose "
            "another --name"
        )
    read = read_hyper(None, args.set or [], faults)
    hyper = read.hyper
    for key, where in read.commanded.items():
        if key in RULES and key not in USED:
            faults.add(f"{where} is not used by val, which takes {', '.join(USED)}; leave it out")
    faults.raise_if_any()
    check_file(Path(args.weights))
    if args.data != "demo":
        spec = read_spec(Path(args.data))
        _check_split(spec, args)
        check_classes(spec, hyper.classes)
    return hyper


def split_of(args: argparse.Namespace) -> str:
    """The split to evaluate."""
    return args.split or "val"


def _check_split(spec: DataSpec, args: argparse.Namespace) -> None:
    split = split_of(args)
    if not (spec.needs_download or spec.sources(split)):
        raise UserError(f"--split {split}: {spec.yaml} names no {split} images; add `{split}: FOLDER`")


def validate(args: argparse.Namespace, ranks: Ranks) -> Evaluation | None:
    """Evaluate `args.weights` on a split of `args.data`; the result on rank 0. A collective."""
    hyper = ranks.main_first(lambda: check_val_arguments(args))
    ranks.main_first(lambda: read_pt(Path(args.weights)) and None)
    net = read_pt(Path(args.weights))
    if not has_plain_head(net):
        head = type(net.model[-1]).__name__
        raise UserError(f"--weights {args.weights}: its {head} head is not YOLOv5u's; evaluate it with ultralytics")
    spec = read_data(Path(args.data), ranks)
    _check_split(spec, args)
    names = class_names(spec, hyper)
    if net.model[-1].nc != len(names):
        raise UserError(
            f"--weights {args.weights} knows {net.model[-1].nc} classes, but {spec.yaml} names {len(names)}; "
            "evaluate with the yaml that it was trained with"
        )
    stride = max(int(max(net.stride)), 32)
    imgsz = args.imgsz or int(getattr(net, "args", {}).get("imgsz", 640))
    batch = args.batch_size or DEFAULT_BATCH
    opening = Opening(
        imgsz=imgsz,
        stride=stride,
        epochs=1,
        workers=args.workers or 0,
        local_ranks=ranks.local_size,
        eval_batch=batch,
    )
    split = open_split(spec, split_of(args), hyper, opening, ranks, augment=False)
    run_dir = ranks.main_first(lambda: _make(args))
    telemetry = (
        RunTelemetry(run_dir, names=dict(enumerate(names)), epochs=1, images_per_epoch=1, batch_size=1)
        if ranks.is_main
        else NullTelemetry()
    )
    with telemetry:
        evaluator = Evaluator(
            split.dataset,
            names,
            replace(hyper, max_det=most_boxes(hyper.max_det, split)),
            ranks,
            share=Share(ranks.rank, ranks.size),
            forward_batch=math.ceil(batch / ranks.size),
            workers=args.workers or 0,
            save_dir=run_dir,
        )
        PULSE.started()
        result = evaluator(
            PlainDetector(net.fuse(verbose=False), hyper, ranks.device),  # as `yolo val` does
            plots=hyper.plots,
            pictures=hyper.plots,
            final=True,
            boxes_to=run_dir / PREDICTIONS_FILE if args.save_json else None,
            telemetry=telemetry,
        )
        telemetry.event("results", f"Results saved to {run_dir}")
    return result


def _folder(args: argparse.Namespace) -> Path:
    """The folder asked for."""
    return Path(args.project or "runs") / (args.name or "val")


def _make(args: argparse.Namespace) -> Path:
    """A folder of this evaluation's own, or the one asked for by --exist-ok."""
    with writable(_folder(args)):
        return make_folder(_folder(args), bool(args.exist_ok))
