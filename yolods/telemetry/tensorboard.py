"""TensorBoard: curves, pictures, PR curves, the model's table and the hyper-parameters, in the
run's folder. `board/` has their names.

The x axis is the optimizer step, for validation as well, so that a validation loss can be laid over
the training loss, and so that a resume can hide everything written after the checkpoint
(`purge_step` compares all tags with one number).

Runs with other batches have no step in common. Losses and metrics therefore have a second curve
each, over the number of images (`by_images/`). As such a number is larger than that of its step, a
resume hides these curves also before the checkpoint, and writes them again from results.csv.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from yolods.compat import leave_failures_to_the_next_write
from yolods.stats import CommunicationStats, EpochStats, PipeStats, StabilityEvent
from yolods.telemetry.board.charts import Charts, charts_of
from yolods.telemetry.board.names import board_tag, image_tag, picture_tag

if TYPE_CHECKING:
    from torch import nn
    from ultralytics.utils.metrics import DetMetrics

    from yolods.stability.grad_stats import GradStats
    from yolods.stability.record import StepRecord

_POINTS_AN_EPOCH = 50
"""Points per epoch of a per-step curve: TensorBoard shows only about 1000 in all."""
_PR_POINTS = 127
"""Maximum number of points in TensorBoard's PR summary."""
_PR_CLASSES = 20
"""With more classes, only the final evaluation writes PR curves of single classes."""


# Wide: a method per event of a run, as in `Telemetry`.
class TensorBoardWriter:
    """One event file, written by rank 0."""

    def __init__(
        self,
        run_dir: Path,
        *,
        steps_per_epoch: int,
        images_per_epoch: int = 1,
        start_step: int = 0,
        events: Sequence[Mapping[str, Any]] = (),
        history: Mapping[str, Sequence[float]] | None = None,
        epoch_ends: Mapping[int, int] | None = None,
    ) -> None:
        """Open an event file in `run_dir`, which makes readers hide earlier points after
        `start_step`.

        Args:
            run_dir: the run's folder.
            steps_per_epoch: optimizer steps per epoch.
            images_per_epoch: number of training images.
            start_step: number of steps that a resumed run starts from.
            events: earlier events of stability.jsonl, which the counts include.
            history: columns of results.csv up to `start_step`.
            epoch_ends: images seen at the end of each epoch (from 0) of `history`; of others, those
                of its samples are taken.
        """
        from torch.utils.tensorboard import SummaryWriter

        leave_failures_to_the_next_write()
        # Also on a first start: readers take the first such mark in a folder as its beginning, and
        # every further one as a restart.
        self._writer = SummaryWriter(str(run_dir), purge_step=start_step + 1, flush_secs=20)
        self._every = max(steps_per_epoch // _POINTS_AN_EPOCH, 1)
        self.also: Callable[[Mapping[str, float], int], None] | None = None
        """Called with every point over steps: the values by their names in the record, and the
        step."""
        self._pending: list[StepRecord] = []
        self._counted = Counter(tag for event in events for tag in _tags_of(event))
        self._images_per_epoch = images_per_epoch
        self._norms = _LayerNorms()
        self._planned: tuple[float, ...] = ()
        self._texts: dict[str, tuple[int, str]] = {}
        self._tags: set[str] = set()
        self._charts: Charts = {}
        self.step_number = start_step
        if history:
            self._recall(history, epoch_ends or {}, start_step + 1)

    def start(
        self,
        config: Mapping[str, Any],
        model_summary: str,
        hyper: Mapping[str, Any],
        notes: Sequence[str] = (),
        planned: Sequence[float] = (),
    ) -> None:
        """Write the resolved configuration, the model as markdown, the layout as it is told on the
        screen, and the hyper-parameters; see `Telemetry.start`."""
        from torch.utils.tensorboard.summary import hparams

        self._planned = tuple(planned)
        if notes:
            lines = "\n".join(notes)
            self._writer.add_text("Layout", f"```\n{lines}\n```", self.step_number)

        self._writer.add_text(
            "config", f"```json\n{json.dumps(config, indent=2, default=str)}\n```", self.step_number
        )
        self._writer.add_text("Model", model_summary, self.step_number)
        # `add_hparams` would write to a sub-folder, which TensorBoard shows as a second run; so its
        # three summaries are written here.
        experiment, session, _ = hparams(_flat(hyper), dict.fromkeys(_BEST.values(), 0.0))
        for summary in (experiment, session):
            self._writer.file_writer.add_summary(summary, self.step_number)

    def step(self, record: StepRecord) -> None:
        """Add one step; the mean of every few steps becomes one point of each curve."""
        self._pending.append(record)
        self.step_number = record.step
        if len(self._pending) >= self._every:
            self._write_pending()

    def stability(self, event: StabilityEvent) -> None:
        """Tell an event, and count it by action, by cause and by the layer where it began."""
        from yolods.stability.event import sentence

        self.text("events/stability", f"step {event.step}: {sentence(event)}")
        tags = _tags_of(vars(event))
        self._counted.update(tags)
        self._scalars({tag: float(self._counted[tag]) for tag in tags})

    def pipeline(self, stats: PipeStats) -> None:
        """Add one point to each curve of the pipeline."""
        values = {"pipeline/idle": stats.idle, "pipeline/idle_bound": stats.bound}
        for stage in stats.stages:
            where = f"stage{stage.stage}"
            values |= {
                f"pipeline/seconds_{where}": stage.forward + stage.backward,
                f"pipeline/sent_mib_{where}": stage.sent / 2**20,
                f"pipeline/peak_mib_{where}": stage.peak / 2**20,
            }
        self._scalars(values)

    def communication(self, stats: CommunicationStats) -> None:
        """Add one point to each curve of an epoch's communication, and to each of its ranks."""
        values = {} if stats.needed is None else {"communication/needed_mb": stats.needed / 1e6}
        if stats.told_apart:
            values["communication/held_share"] = stats.held
            values["communication/waiting_share"] = stats.waiting
        for rank in stats.ranks:
            where = f"rank{rank.rank}"
            if stats.told_apart:
                values[f"communication/ranks/held_share_{where}"] = rank.held
                values[f"communication/ranks/waiting_share_{where}"] = rank.waiting
            values |= {
                f"communication/ranks/sent_mb_{where}": sum(rank.sent.values()) / 1e6,
                f"communication/ranks/between_steps_mb_{where}": rank.between / 1e6,
            }
            for peer, sent in rank.boundaries.items():
                values[f"communication/boundaries/mb_{where}_to_rank{peer}"] = sent / 1e6
        self._scalars(values)

    def memory(self, peaks: Mapping[int, float]) -> None:
        """Add one point to each rank's curve of its peak memory in bytes, and to the plan's."""
        gib = {f"peak_gib_rank{rank}": peak / 2**30 for rank, peak in peaks.items()}
        gib |= {
            f"planned_gib_stage{stage}": peak / 2**30 for stage, peak in enumerate(self._planned)
        }
        self._scalars({f"memory/{name}": value for name, value in gib.items()})

    def ranks(self, seconds: Mapping[int, float]) -> None:
        """Add one point to each curve of the ranks."""
        usual = median(seconds.values())
        values = {f"ranks/seconds_rank{rank}": own for rank, own in seconds.items()}
        values["ranks/slowest_to_median"] = max(seconds.values()) / max(usual, 1e-9)
        self._scalars(values)

    def epoch_end(self, stats: EpochStats) -> None:
        """Write an epoch's validation losses, metrics, rate and number."""
        self._write_pending()
        values = {f"val/{name}": value for name, value in (stats.val_loss or {}).items()}
        values |= stats.metrics or {}
        values |= {
            "epoch": stats.epoch + 1,
            "time/images_per_second_epoch": stats.images_per_second,
        }
        if stats.loader is not None:
            values |= {f"data/loader_{name}": value for name, value in asdict(stats.loader).items()}
        if stats.fitness is not None:
            values["metrics/fitness"] = stats.fitness
        self._scalars(values)
        self._over_images(values, stats.position)
        for tag, norms in self._norms.take():
            self._writer.add_histogram(tag, norms, self.step_number)
        self._write_charts()
        self._writer.flush()

    def evaluated(self, values: Mapping[str, float]) -> None:
        """Add one point to each curve, for an evaluation outside a run."""
        self._scalars(values)
        self._write_charts()
        self._writer.flush()

    def picture(self, tag: str, file: Path, step: int | None = None) -> None:
        """Add a .jpg or .png; its bytes are written to the event file without being decoded."""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(file) as image:
            width, height = image.size
        picture = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes()
        )
        summary = Summary(value=[Summary.Value(tag=picture_tag(tag), image=picture)])
        self._writer.file_writer.add_summary(summary, self.step_number if step is None else step)

    def pr_curves(self, metrics: DetMetrics, *, final: bool) -> None:
        """Write precision and recall at IoU 0.5 over the confidence threshold, as class mean and
        per class.

        `metrics` must be processed. Thresholds are confidences, so that hovering over a point shows
        the `conf` that gives it; BoxPR_curve.png has the interpolated curve over recall.
        """
        box, classes = metrics.box, list(metrics.ap_class_index)
        if not classes:
            return
        labels = metrics.nt_per_class[classes]
        single = final or len(metrics.names) <= _PR_CLASSES
        for row, index in enumerate(classes if single else []):
            self._pr_curve(
                f"pr/{metrics.names[index]}", box.p_curve[row], box.r_curve[row], labels[row]
            )
        self._pr_curve("pr/all classes", box.p_curve.mean(0), box.r_curve.mean(0), labels.sum())

    def text(self, tag: str, text: str) -> None:
        """Add a line of text, below those that the step already has under this tag."""
        step, earlier = self._texts.get(tag, (None, ""))
        if step == self.step_number:
            text = f"{earlier}  \n{text}"  # TensorBoard keeps one text per step
        self._texts[tag] = self.step_number, text
        self._writer.add_text(tag, text, self.step_number)

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Write the final metrics of the HParams tab, and the end of its session."""
        from torch.utils.tensorboard.summary import hparams

        self._write_pending()
        self._scalars({_BEST[name]: value for name, value in metrics.items() if name in _BEST})
        self._writer.file_writer.add_summary(hparams({}, {})[2], self.step_number)
        self._writer.flush()

    def close(self) -> None:
        """Write pending steps and close the file."""
        self._write_pending()
        self._writer.close()

    def _write_pending(self) -> None:
        steps, self._pending = self._pending, []
        if not steps:
            return
        values: dict[str, list[float | None]] = {}
        for record in steps:
            for tag, value in record.curves().items():
                values.setdefault(tag, []).append(value)
        means = {tag: _mean(series) for tag, series in values.items()}
        self._scalars(means)
        self._over_images(means, steps[-1].position)
        if (norms := self._norms.add(steps[-1].grad_stats)) is not None:
            self._writer.add_histogram(f"{_NORMS}_of_all", norms, self.step_number)

    def _recall(
        self, history: Mapping[str, Sequence[float]], ends: Mapping[int, int], purged: int
    ) -> None:
        """Write the curves over images that opening the file has hidden: points from `purged` on.

        Those before it are still shown, and must not be written twice.
        """
        for row, number in enumerate(history["epoch"]):
            epoch = round(number)
            images = ends.get(epoch - 1, epoch * self._images_per_epoch)
            if images >= purged:
                self._over_images({name: values[row] for name, values in history.items()}, images)

    def _scalars(self, values: Mapping[str, float | None]) -> None:
        points = _finite(values)
        if self.also is not None:
            self.also(points, self.step_number)
        self._points({board_tag(name): value for name, value in points.items()}, self.step_number)

    def _over_images(self, values: Mapping[str, float | None], images: int) -> None:
        """Add points of losses and metrics over the number of images that the run has seen."""
        tagged = {image_tag(name): value for name, value in values.items()}
        known = {tag: value for tag, value in tagged.items() if tag is not None}
        self._points(_finite(known), images)

    def _points(self, values: Mapping[str, float], x: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, x)
        self._tags.update(values)

    def _write_charts(self) -> None:
        """Write the charts of Custom Scalars, if curves for another one have appeared."""
        from torch.utils.tensorboard.summary import custom_scalars

        charts = charts_of(self._tags)
        if charts != self._charts:
            self._charts = charts
            self._writer.file_writer.add_summary(custom_scalars(charts), self.step_number)

    def _pr_curve(self, tag: str, precision: Any, recall: Any, labels: int) -> None:
        """Add a curve; the arrays (1000,) cover confidences 0 to 1, `labels` counts the boxes."""
        import numpy as np

        # TensorBoard wants counts; ultralytics keeps only the ratios, from which they follow.
        points = np.linspace(0, len(precision) - 1, _PR_POINTS).round().astype(int)
        p, r = precision[points], recall[points]
        found = r * labels
        wrong = np.where(p > 0, found / np.maximum(p, 1e-9) - found, 0.0)
        self._writer.add_pr_curve_raw(
            tag,
            found,
            wrong,
            np.zeros_like(found),
            labels - found,
            p,
            r,
            self.step_number,
            _PR_POINTS,
        )


class _LayerNorms:
    """The gradient norms of an epoch, by layer."""

    def __init__(self) -> None:
        self._by_layer: dict[str, list[Any]] = {}

    def add(self, grad_stats: GradStats | None) -> Any:
        """Note a step's norms; returns the logarithms of those that have one, or None."""
        import numpy as np

        if grad_stats is None:
            return None
        norms = np.asarray(grad_stats.norms)
        good = np.isfinite(norms) & (norms > 0)
        if not good.any():
            return None
        logs = np.log10(norms, where=good, out=np.full(norms.shape, np.nan))
        for name, log in zip(grad_stats.names, logs, strict=True):
            if not math.isnan(log):
                self._by_layer.setdefault(layer_of(name), []).append(log)
        return logs[good]

    def take(self) -> list[tuple[str, Any]]:
        """The tag and the logarithms of each layer, from the first one on; forgets them."""
        import numpy as np

        found, self._by_layer = self._by_layer, {}
        return [(f"{_NORMS}/{layer}", np.array(logs)) for layer, logs in found.items()]


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: `model.9` for `model.9.cv1.conv.weight`."""
    return ".".join(parameter.split(".")[:2])


_NORMS = "gradients/log10_norm"
"""Histograms of gradient norms by orders of magnitude: of all parameters, and by layer."""
# Not among the metrics: a card with a single point would come first there. HParams shows the first.
_BEST = {
    f"metrics/{name}(B)": f"final/{name}" for name in ("mAP50-95", "mAP50", "precision", "recall")
}


def _tags_of(event: Mapping[str, Any]) -> list[str]:
    """The tags of the counts that an event increments."""
    layers = sorted({each["layer"] for each in event["culprits"]})
    return [
        f"stability/{event['action']}",
        f"stability/by_cause/{event['cause']}",
        *(f"stability/by_layer/{layer}" for layer in layers),
    ]


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that can be drawn."""
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }


def _mean(series: list[float | None]) -> float | None:
    finite = [value for value in series if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested mappings with dotted keys; values of other types become text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = (
                value if isinstance(value, bool | int | float | str) else str(value)
            )
    return flat


def model_table(model: nn.Module) -> str:
    """The layers of an ultralytics DetectionModel as a markdown table, like its summary, with the
    total.

    It reads the attributes that ultralytics sets when it builds the layers (index, source,
    parameters, type), so that it is right even after ZeRO-3 has partitioned the parameters.
    """
    lines = ["| layer | from | parameters | module |", "| ---: | ---: | ---: | --- |"]
    layers = list(model.model)
    lines += [
        f"| {layer.i} | {layer.f} | {layer.np:,} | {layer.type.split('.')[-1]} |"
        for layer in layers
    ]
    return "\n".join(
        [*lines, f"| **{len(layers)}** | | **{sum(layer.np for layer in layers):,}** | **total** |"]
    )
