"""The pictures of a run, drawn by ultralytics; a failure costs a warning, never the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolods.telemetry.fonts import use_fonts_for

if TYPE_CHECKING:
    import numpy as np

_log = logging.getLogger("yolods.plots")

MAX_IMAGES = 16
"""Number of images of a batch that ultralytics' `plot_images` shows."""
_MIN_CONFIDENCE = 0.25
"""Confidence above which ultralytics' `plot_images` draws predictions."""

Batch = Mapping[str, Any]
"""A collated batch: `img` (B, 3, H, W) uint8 or float in [0, 1], `cls` (N, 1), `bboxes` (N, 4) xywh
in [0, 1], `batch_idx` (N,), `im_file` B paths; tensors on any device."""
Prediction = Mapping[str, Any]
"""One image's boxes after NMS: `bboxes` (n, 4) xyxy in input pixels, `conf` (n,), `cls` (n,)."""


@contextmanager
def harmless(what: str) -> Iterator[None]:
    """Turn any exception in this context into one warning that names `what`."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        _log.warning("%s could not be written: %s", what, reason)


class Painter:
    """Draws grids of images in a thread, in order, while training continues.

    The caller's thread draws pictures that use pyplot (labels, results), because pyplot's state is
    global.
    """

    def __init__(
        self, run_dir: Path, names: Mapping[int, str], on_picture: Callable[[str, Path, int], None]
    ) -> None:
        """
        Args:
            run_dir: folder for the pictures.
            names: class names by id.
            on_picture: called as `on_picture(tag, file, step)` for each picture that has been
                written, in the thread that has written it.
        """
        self._dir = run_dir
        self._names = dict(names)
        self._on_picture = on_picture
        # One worker, so that a later picture of the same name is also written later.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="plots")
        self._jobs: list[Future[None]] = []
        with harmless("class names in their own font"):
            use_fonts_for(" ".join(self._names.values()))

    def train_images(self, batch: Batch, k: int, step: int) -> None:
        """Draw train_batch<k>.jpg: the first images of the batch with their labels."""
        name = f"train_batch{k}.jpg"
        with harmless(name):
            self._submit(
                name, f"train/batch{k}", step, _images(batch), _labels(batch), batch["im_file"]
            )

    def val_images(
        self, batch: Batch, predictions: Sequence[Prediction], k: int, step: int
    ) -> None:
        """Draw val_batch<k>_labels.jpg and val_batch<k>_pred.jpg: labels and predictions."""
        with harmless(f"val_batch{k}_labels.jpg and _pred.jpg"):
            images = _images(batch)
            for kind, boxes in (("labels", _labels(batch)), ("pred", _predicted(predictions))):
                name = f"val_batch{k}_{kind}.jpg"
                # A copy for each, because `plot_images` changes the images.
                self._submit(
                    name, f"val/batch{k}_{kind}", step, images.copy(), boxes, batch["im_file"]
                )

    def labels(self, boxes: np.ndarray) -> None:
        """Draw labels.jpg: instances per class, and places and sizes of the boxes.

        `boxes` (n, 5): class, normalised centre x, centre y, width, height.
        """
        with harmless("labels.jpg"):
            from ultralytics.utils.plotting import plot_labels

            if not len(boxes):
                raise ValueError("the training set has no labelled box")
            self._redraw(
                "labels.jpg",
                lambda: plot_labels(
                    boxes[:, 1:], boxes[:, 0], names=self._names, save_dir=self._dir
                ),
            )

    def results(self) -> None:
        """Draw results.png from results.csv."""
        with harmless("results.png"):
            from ultralytics.utils.plotting import plot_results

            self._redraw("results.png", lambda: plot_results(file=self._dir / "results.csv"))

    def join(self) -> None:
        """Wait until every requested picture is written or has failed."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def close(self) -> None:
        """Wait for all pictures and end the thread."""
        self.join()
        self._pool.shutdown()

    def _redraw(self, name: str, draw: Callable[[], None]) -> None:
        """Draw a picture, and raise if there is no file: ultralytics only logs some failures."""
        file = self._dir / name
        file.unlink(missing_ok=True)
        draw()
        if not file.is_file():
            raise RuntimeError("see the line above")

    def _submit(
        self,
        name: str,
        tag: str,
        step: int,
        images: Any,
        boxes: dict[str, Any],
        paths: Sequence[str],
    ) -> None:
        from ultralytics.utils.plotting import plot_images

        file = self._dir / name
        shown = [str(path) for path in paths[: len(images)]]

        def draw() -> None:
            with harmless(name):
                plot_images(boxes, images, shown, file, self._names, threaded=False)
                self._on_picture(tag, file, step)

        self._jobs = [job for job in self._jobs if not job.done()]
        self._jobs.append(self._pool.submit(draw))


def _images(batch: Batch) -> Any:
    """A copy, because plot_images scales in place: (b, 3, H, W) float32 in [0, 255]."""
    images = batch["img"][:MAX_IMAGES].detach()
    scale = 255.0 if images.is_floating_point() else 1.0
    return images.float().cpu().contiguous().numpy() * scale


def _labels(batch: Batch) -> dict[str, Any]:
    """A copy of the shown images' labels, as numpy arrays."""
    index = batch["batch_idx"].detach().cpu().reshape(-1)
    shown = index < MAX_IMAGES
    values = {key: batch[key].detach().cpu()[shown].float().numpy() for key in ("cls", "bboxes")}
    return {
        "batch_idx": index[shown].numpy(),
        "cls": values["cls"].reshape(-1),
        "bboxes": values["bboxes"],
    }


def _predicted(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Confident predictions of the shown images as numpy arrays, boxes as xywh in pixels."""
    import torch
    from ultralytics.utils.ops import xyxy2xywh

    rows = [torch.zeros(0, 7)]
    for index, one in enumerate(predictions[:MAX_IMAGES]):
        boxes, conf, cls = (one[key].detach().float().cpu() for key in ("bboxes", "conf", "cls"))
        # Pillow raises for an inverted or nan box, which would cost the whole picture.
        keep = (
            (conf > _MIN_CONFIDENCE) & (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])
        )
        image = torch.full((int(keep.sum()), 1), float(index))
        rows.append(
            torch.cat([image, xyxy2xywh(boxes[keep]), conf[keep, None], cls[keep, None]], dim=1)
        )
    table = torch.cat(rows).numpy()
    return {
        "batch_idx": table[:, 0],
        "bboxes": table[:, 1:5].copy(),
        "conf": table[:, 5],
        "cls": table[:, 6],
    }
