"""Detection metrics over all ranks: every rank matches its share of the images, rank 0 combines the
results.

Matching and averaging are ultralytics' own (DetectionValidator, DetMetrics, ConfusionMatrix). This
module makes them work under every layout, counts each image of uneven shares exactly once, and
gives a result that does not depend on the world size.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from yolods.compat import labels_of, matches, skip_own_decoding
from yolods.data.dataset import DetectionSet
from yolods.data.loader import EvalBatch, eval_batches, eval_loader
from yolods.device.host_copy import on_host
from yolods.distributed.phases import mark, slowly
from yolods.distributed.world import Ranks, Share
from yolods.errors import UserError
from yolods.model.decode import decode
from yolods.model.inputs import InputFormat
from yolods.model.loss.detection_loss import DetectionLoss, as_float
from yolods.stats import LOSS_NAMES, METRIC_NAMES
from yolods.system import interrupt
from yolods.telemetry import NullTelemetry, Telemetry

if TYPE_CHECKING:
    from ultralytics.utils.metrics import DetMetrics

log = logging.getLogger(__name__)
PICTURES = 3
"""Number of batches that are drawn."""

SHOWN_CONFIDENCE = 0.25
"""Default confidence above which predictions count in the confusion matrix: what users look at.
ultralytics 8.4.190 uses the metrics' 0.001, at which guesses outnumber detections; the default of
`process_batch` is 0.25."""

UNLIMITED_SECONDS = 1e9
"""Time limit of NMS, after which ultralytics drops the rest of a batch: never."""


class Detector(Protocol):
    """A model that `Evaluator` can evaluate."""

    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]] | None:
        """Boxes and scores (N, 4 + nc, A) fp32, and raw fp32 outputs, of uint8 images (N, 3, H, W).

        None on ranks that do not get the outputs: all stages of a pipeline but the last.
        """

    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """`DetectionLoss.sums` (4,) of the raw outputs."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, on rank 0."""

    metrics: dict[str, float]
    """Precision, recall, mAP50 and mAP50-95 under ultralytics' column names."""
    fitness: float
    """ultralytics' fitness, by which the best model is chosen."""
    loss: dict[str, float]
    """Loss items as the mean over the set's batches, as in ultralytics' trainer."""
    details: DetMetrics
    """Values per class, and curves."""
    images: int
    """Number of images."""
    seconds: float
    """Wall time in seconds."""


@dataclass
class _Tally:
    """The results of one rank so far."""

    records: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)
    confusion: np.ndarray | None = None
    losses: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Index of the first image and loss sums, for each piece of a batch."""
    replaced: list[str] = field(default_factory=list)
    shown: list[list[dict[str, Tensor]]] = field(default_factory=list)
    stopped: bool = False
    """Whether this rank was asked to stop and skipped images."""


class Evaluator:
    """Evaluates detectors on one split; created once per run. Calling it is a collective."""

    def __init__(
        self,
        dataset: DetectionSet,
        names: Sequence[str],
        hyper: Any,
        ranks: Ranks,
        *,
        share: Share,
        forward_batch: int,
        workers: int = 0,
        save_dir: Path,
    ) -> None:
        """
        Args:
            dataset: without augmentation; its `eval_batch` determines padded shapes and losses.
            share: this rank's part of the images, and whether it reads images or gets outputs.
            hyper: namespace with conf, iou, max_det, agnostic_nms, single_cls.
            forward_batch: maximum images per forward pass on a rank; batches are split into such
                pieces.
            save_dir: folder for plots.
        """
        self._dataset, self._names = dataset, dict(enumerate(names))
        self._hyper, self._ranks, self._share = hyper, ranks, share
        self._workers, self.save_dir = workers, save_dir
        self._batches = eval_batches(
            dataset, dp_rank=share.dp_rank, dp_size=share.dp_size, forward_batch=forward_batch
        )

    def __call__(
        self,
        detector: Detector,
        *,
        plots: bool = False,
        pictures: bool = False,
        final: bool = False,
        boxes_to: Path | None = None,
        telemetry: Telemetry | None = None,
    ) -> Evaluation | None:
        """Evaluate on all ranks.

        Args:
            plots: draw curves and the confusion matrix into `save_dir`.
            pictures: give images with boxes to telemetry.
            final: show a line per class.
            boxes_to: file for all boxes as COCO's results JSON.

        Returns:
            the result on rank 0, None elsewhere.

        Raises:
            Stopped: on every rank: one was asked to stop. Ranks that need each other in a forward
                pass complete all passes first.
        """
        telemetry = telemetry or NullTelemetry()
        started = time.perf_counter()
        ids = None if boxes_to is None else image_ids(self._dataset.im_files)
        # A new one per evaluation: ultralytics' validator accumulates statistics.
        judge = _Judge(self._names, self._hyper, self.save_dir, confusion=plots, ids=ids)
        tally = _Tally()
        telemetry.val_begin(len(self._batches))
        first = self._go_through(detector, judge, tally, telemetry, pictures=pictures)
        mark("adding up the evaluation")
        tally.confusion = judge.confusion
        tallies = self._ranks.to_main(tally)
        # All ranks raise if one stopped; otherwise the others would wait in the next collective.
        if self._ranks.from_main(any(each.stopped for each in tallies)):
            raise interrupt.Stopped()
        if not self._ranks.is_main:
            return None
        with slowly("the evaluation's results"):
            result = self._add_up(
                judge,
                tallies,
                plots=plots,
                boxes_to=boxes_to,
                seconds=time.perf_counter() - started,
            )
            self._show(telemetry, first, tallies)
            telemetry.val_end(result.details, result.images, final=final)
        place = self._dataset.source.place
        for file in sorted(
            place(image) for image in {image for each in tallies for image in each.replaced}
        ):
            telemetry.event(
                "unreadable",
                f"{file} could not be read and counts as an image without boxes",
                warn=True,
            )
        return result

    def _go_through(
        self,
        detector: Detector,
        judge: _Judge,
        tally: _Tally,
        telemetry: Telemetry,
        *,
        pictures: bool,
    ) -> list[dict[str, Any]]:
        """Predict and match this rank's batches into `tally`; returns rank 0's first ones."""
        first: list[dict[str, Any]] = []
        reads = self._share.first_stage or self._share.last_stage
        loaded = load(self._dataset, self._batches, self._ranks, reads=reads, workers=self._workers)
        for number, batch in enumerate(loaded):
            mark("evaluation", number)
            if interrupt.asked() and self._share.alone:
                tally.stopped = True
                break
            # Also for a batch that does not count, because a forward pass may be a collective.
            found = detector.predict(batch["img"] if self._share.first_stage else None)
            if found is not None and batch["real"]:
                # The only wait for the device per batch. NMS runs on the host: on a device, each of
                # its up to nine operations per image would wait for the sizes of the previous one.
                boxes, sums = on_host(found[0], detector.score(found[1], batch))
                tally.losses.append((batch["index"][0], sums.numpy()))
                shown = judge.judge(boxes, batch, tally)
                if pictures and len(tally.shown) < PICTURES:
                    tally.shown.append(shown)
            if self._ranks.is_main and len(first) < PICTURES:
                first.append(batch)
            tally.replaced += batch.get("replaced", ())
            with slowly("the screen"):
                telemetry.val_progress()
        return first

    @staticmethod
    def _show(telemetry: Telemetry, batches: list[dict[str, Any]], tallies: list[_Tally]) -> None:
        """Show rank 0's first batches with predictions, which may come from a later stage."""
        shown = next((tally.shown for tally in tallies if tally.shown), [])
        for number, (batch, found) in enumerate(zip(batches, shown, strict=False)):
            telemetry.val_images(batch, found, number)

    def _add_up(
        self,
        judge: _Judge,
        tallies: list[_Tally],
        *,
        plots: bool,
        boxes_to: Path | None,
        seconds: float,
    ) -> Evaluation:
        # In the order of images, so that ties in confidence do not depend on the world size.
        records = sorted(
            (record for tally in tallies for record in tally.records),
            key=lambda record: record["index"],
        )
        details = judge.metrics(records, plots)
        if plots:
            judge.plot_confusion(
                sum(tally.confusion for tally in tallies if tally.confusion is not None)
            )
        if boxes_to is not None:
            _write_boxes(boxes_to, tallies)
        return Evaluation(
            metrics=dict(zip(METRIC_NAMES, map(float, details.mean_results()), strict=True)),
            fitness=float(details.fitness),
            loss=dict(zip(LOSS_NAMES, self._mean_loss(tallies).tolist(), strict=True)),
            details=details,
            images=len(records),
            seconds=seconds,
        )

    def _mean_loss(self, tallies: list[_Tally]) -> np.ndarray:
        """Loss items (3,) as the mean over batches, whose pieces may come from several ranks."""
        batches = np.zeros(
            (math.ceil(len(self._dataset) / self._dataset.eval_batch), len(LOSS_NAMES) + 1)
        )
        # In the order of images, so that sums are rounded equally for every world size.
        for first, sums in sorted(
            (piece for tally in tallies for piece in tally.losses), key=lambda piece: piece[0]
        ):
            batches[first // self._dataset.eval_batch] += sums
        return (batches[:, :-1] / np.maximum(batches[:, -1:], 1)).mean(0)


def _write_boxes(path: Path, tallies: Sequence[_Tally]) -> None:
    boxes = (box for tally in tallies for box in tally.boxes)
    content = json.dumps(sorted(boxes, key=lambda box: str(box["image_id"])))
    path.write_text(content, encoding="utf-8")


def image_ids(images: Sequence[str]) -> dict[str, int | str]:
    """Image ids for predictions.json: as in ultralytics the file name without suffix, as an int if
    it is one.

    Images that would share an id get their path with suffix, below the common folder of all images.

    Args:
        images: the images' identities.
    """
    stems = {each: int(stem) if (stem := Path(each).stem).isnumeric() else stem for each in images}
    levels = zip(*(Path(each).parts[:-1] for each in images), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len({*level}) == 1, levels))
    paths = {each: str(Path(*Path(each).parts[common:])) for each in images}
    taken = Counter(stems.values())
    ids = {each: stem if taken[stem] == 1 else paths[each] for each, stem in stems.items()}
    return ids if len({*ids.values()}) == len(ids) else dict(paths)


def load(
    dataset: DetectionSet, batches: Sequence[EvalBatch], ranks: Ranks, *, reads: bool, workers: int
) -> Iterator[dict[str, Any]]:
    """This rank's batches of an evaluation; without `reads`, as many batches without images."""
    if not reads:
        return iter([{"img": None, "real": batch.real} for batch in batches])
    pinned = ranks.device.type == "cuda"
    return log_user_errors(eval_loader(dataset, batches, workers=workers, pin_memory=pinned), ranks)


def log_user_errors(batches: Iterator[dict[str, Any]], ranks: Ranks) -> Iterator[dict[str, Any]]:
    """Pass on a loader's batches, and log a UserError on ranks other than 0 immediately.

    Rank 0 shows errors that all ranks raise (cli.py), but does not learn of one on another rank.
    """
    try:
        yield from batches
    except UserError as fault:
        if not ranks.is_main:
            log.error("%s", fault)
        raise
    finally:
        if hasattr(batches, "close"):
            batches.close()  # ends the loader's processes now, not at garbage collection


class _Judge:
    """ultralytics' DetectionValidator, called per image; its own loop and ranks are not used."""

    def __init__(
        self,
        names: dict[int, str],
        hyper: Any,
        save_dir: Path,
        *,
        confusion: bool,
        ids: dict[str, int | str] | None,
    ) -> None:
        """
        Args:
            names: class names by id.
            hyper: as for `Evaluator`.
            save_dir: folder for plots.
            confusion: count a confusion matrix.
            ids: keep all boxes under these image ids; None keeps none.
        """
        from ultralytics.models.yolo.detect import DetectionValidator
        from ultralytics.utils.metrics import ConfusionMatrix

        settings = {
            "mode": "val",
            "task": "detect",
            "conf": hyper.conf if hyper.conf is not None else 0.001,
            "iou": hyper.iou,
            "max_det": hyper.max_det,
            "agnostic_nms": hyper.agnostic_nms,
            "single_cls": hyper.single_cls,
            "plots": confusion,
        }
        self._validator = DetectionValidator(save_dir=save_dir, args=settings)
        # What the validator's own `__call__` would set up from a model and a loader.
        self._validator.device = torch.device("cpu")
        self._validator.names = self._validator.metrics.names = names
        self._validator.class_map = list(range(1, len(names) + 1))
        self._validator.jdict = []
        self._save_dir, self._ids = save_dir, ids
        self._shown_above = SHOWN_CONFIDENCE if hyper.conf is None else hyper.conf
        self._matrix = ConfusionMatrix(names=names) if confusion else None

    def judge(
        self, decoded: Tensor, batch: dict[str, Any], tally: _Tally
    ) -> list[dict[str, Tensor]]:
        """Apply NMS, match boxes with labels, and add the results to `tally`; returns the boxes.

        Args:
            decoded: (N, 4 + nc, A) fp32 on the host.
            batch: its first `real` images count; the others only keep the ranks in step.
        """
        found = self._suppress(decoded)[: batch["real"]]
        for place, prediction in enumerate(found):
            target = labels_of(self._validator, place, batch)
            classes = target["cls"].numpy()
            tally.records.append(
                {
                    "index": batch["index"][place],
                    "tp": matches(self._validator, prediction, target),
                    "conf": prediction["conf"].numpy(),
                    "pred_cls": prediction["cls"].numpy(),
                    "target_cls": classes,
                    "target_img": np.unique(classes),
                    "im_name": Path(target["im_file"]).name,
                }
            )
            if self._matrix is not None:
                self._matrix.process_batch(prediction, target, conf=self._shown_above)
            if self._ids is not None:
                self._note_boxes(prediction, target)
        # `_note_boxes` fills `jdict`; it is emptied here, so that each box is counted once.
        tally.boxes, self._validator.jdict = tally.boxes + self._validator.jdict, []
        return found

    def _note_boxes(self, prediction: dict[str, Tensor], target: dict[str, Any]) -> None:
        """Keep an image's boxes in ultralytics' format, under an id that no other image has."""
        known = len(self._validator.jdict)
        self._validator.pred_to_json(_in_image(prediction, target), target)
        for box in self._validator.jdict[known:]:
            box["image_id"] = self._ids[target["im_file"]]

    def _suppress(self, decoded: Tensor) -> list[dict[str, Tensor]]:
        from ultralytics.utils.nms import non_max_suppression

        settings = self._validator.args
        kept = non_max_suppression(
            decoded,
            settings.conf,
            settings.iou,
            multi_label=True,
            agnostic=bool(settings.single_cls or settings.agnostic_nms),
            max_det=settings.max_det,
            max_time_img=UNLIMITED_SECONDS,
        )
        return [self._split(boxes) for boxes in kept]

    def _split(self, boxes: Tensor) -> dict[str, Tensor]:
        classes = torch.zeros_like(boxes[:, 5]) if self._validator.args.single_cls else boxes[:, 5]
        return {"bboxes": boxes[:, :4], "conf": boxes[:, 4], "cls": classes, "extra": boxes[:, 6:]}

    @property
    def confusion(self) -> np.ndarray | None:
        """This rank's confusion matrix."""
        return None if self._matrix is None else self._matrix.matrix

    def metrics(self, records: list[dict[str, Any]], plots: bool) -> DetMetrics:
        """Average precision from the records of all ranks."""
        details = self._validator.metrics
        details.clear_stats()
        for record in records:
            details.update_stats(record)
        details.process(save_dir=self._save_dir, plot=plots, on_plot=None)
        return details

    def plot_confusion(self, matrix: np.ndarray) -> None:
        """Draw the sum of all ranks' matrices, as counts and normalised."""
        assert self._matrix is not None
        self._matrix.matrix = matrix
        for normalize in (True, False):
            self._matrix.plot(save_dir=str(self._save_dir), normalize=normalize, on_plot=None)


def _in_image(prediction: dict[str, Tensor], target: dict[str, Any]) -> dict[str, Tensor]:
    """The boxes that were matched, in pixels of the original image.

    They are not clipped. ultralytics clips the boxes that it writes to the image's border, but
    matches them as predicted: on BCCD, whose cells touch the border, COCOeval gave the clipped
    boxes 0.022 more mAP50-95 than the table.
    """
    from ultralytics.utils.ops import scale_boxes, xywh2xyxy, xyxy2xywh

    centred = xyxy2xywh(prediction["bboxes"])
    scaled = scale_boxes(
        target["imgsz"], centred, target["ori_shape"], ratio_pad=target["ratio_pad"], xywh=True
    )
    return {**prediction, "bboxes": xywh2xyxy(scaled)}


class PlainDetector:
    """An ultralytics model from a .pt, complete on this rank."""

    def __init__(self, net: Any, hyper: Any, device: torch.device) -> None:
        """
        Args:
            net: fp32 DetectionModel, fused or not.
            hyper: the gains of the loss.
        """
        self._net = net.to(device).eval()
        self._strides = tuple(self._net.model[-1].stride.tolist())
        # The raw outputs are needed for the loss; decoding them once, in `predict`, is enough.
        skip_own_decoding(self._net.model[-1])
        # As in ultralytics' AutoBackend, so that convolutions sum in the same order.
        self._inputs = InputFormat(device, torch.float32, channels_last=device.type == "cpu")
        self._loss = DetectionLoss(self._net.model[-1], device, hyper)

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """Decoded boxes and scores, and raw outputs."""
        assert images is not None
        _, raw = self._net(self._inputs.images(images))
        raw = as_float(raw)
        return decode(raw, self._strides, self._net.model[-1].reg_max), raw

    @torch.no_grad()
    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """See `Detector.score`."""
        return self._loss.sums(raw, batch)
