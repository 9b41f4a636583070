"""ultralytics' data set and augmentation, with samples that are a pure function of (seed, epoch,
index).

It differs from YOLODataset in four ways. It receives a finished `Scan` and never writes a file.
Random numbers are keyed by the sample, so that ranks, workers and restarts do not change them.
Mosaic partners come from the whole set, or from the sample's block, and not from the images that a
process happened to load last. A file that disappears is replaced and reported.
"""

import copy
import logging
import random
import time
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from ultralytics.data.augment import Albumentations, Compose
from ultralytics.data.dataset import YOLODataset

from yolods.compat import loader_memory, quiet_ultralytics
from yolods.config.deepspeed.batch import DEFAULT_BATCH
from yolods.data.augment.finish import IMAGE_OUT
from yolods.data.augment.partners import Partners
from yolods.data.augment.quicken import quicken
from yolods.data.augment.scratch import Scratch
from yolods.data.images.decoded import Decoded, DecodedImages
from yolods.data.index.labels import Identities
from yolods.data.resize import fit, rectangles
from yolods.data.sampler import SampleId, keyed_seed, restored_generators, seed_generators
from yolods.data.scan import Scan
from yolods.data.source import Unreadable
from yolods.errors import UserError

EVAL_PAD = 0.5  # in strides, as in ultralytics' validation
PADDING_GREY = 114

log = logging.getLogger(__name__)


# Wide: half of its methods override ultralytics' own by name.
class DetectionSet(YOLODataset):
    """Images and boxes of one split.

    With `augment`, items are augmented squares, addressed by a `SampleId` or its epoch and index
    alone. Without it, they are addressed by an index and letterboxed to the shape of their group of
    `eval_batch`. An item is a dictionary: img (3, h, w) uint8 RGB, cls (n, 1) and bboxes (n, 4)
    float32 normalised xywh, batch_idx (n), im_file, ori_shape, resized_shape, ratio_pad, sources
    (all images that are part of it), replaced (images that could not be read) and, for evaluation,
    index. Images are named by their identities in `source`, also in `im_files`.
    """

    decode_seconds = 0.0
    """Wall time of this process for reading and decoding images so far."""

    def __init__(
        self,
        scan: Scan,
        data: dict[str, Any],
        hyp: SimpleNamespace,
        *,
        imgsz: int,
        augment: bool,
        seed: int = 0,
        stride: int = 32,
        eval_batch: int = DEFAULT_BATCH,
        cache_ram: bool = False,
        cache_bytes: int | None = None,
    ) -> None:
        """
        Args:
            scan: the checked images and boxes of the split.
            data: the result of spec.as_ultralytics().
            hyp: ultralytics' get_cfg() with epochs, close_mosaic and the augmentation.
            imgsz: long side in pixels.
            augment: whether samples are augmented.
            seed: the run's seed.
            stride: the model's largest stride in pixels.
            eval_batch: so many neighbours in aspect ratio share one padded shape, as a batch does
                in ultralytics.
            cache_ram: load all images now, if they fit; changes no sample.
            cache_bytes: bytes of decoded images that each process may keep, None for
                default_cache_bytes(1); changes no sample.
        """
        self.seed, self.eval_batch = seed, eval_batch
        self.source = scan.source
        limit = default_cache_bytes(1) if cache_bytes is None else cache_bytes
        self.images = DecodedImages(self._decode, limit)
        self._partners, self._scratch = Partners(), Scratch()
        self._replaced: list[str] = []
        self._sources: list[str] = []
        self._excluded: set[int] = set()
        self._further = random.Random()
        """Seeds the generators that transforms own."""
        self._closed: Compose | None = None
        # ultralytics' trainer rebuilds the transforms for the last epochs; here the sample's epoch
        # decides, because workers may already prepare the next one.
        self._close_epoch = hyp.epochs - hyp.close_mosaic if augment and hyp.close_mosaic else None
        super().__init__(
            img_path=[],
            imgsz=imgsz,
            cache=False,
            augment=augment,
            hyp=hyp,
            batch_size=eval_batch,
            stride=stride,
            pad=0.0 if augment else EVAL_PAD,
            data=data,
            task="detect",
        )
        # Afterwards, because ultralytics makes four Python objects per image that it is given.
        self.labels, self.ni = scan.labels, len(scan.labels)
        self.im_files = Identities(self.labels)
        if not augment:
            self.rect = True
            self.set_rectangle()
        if cache_ram:
            self._load_all()

    def get_img_files(self, img_path: list[str]) -> list[str]:
        """None; ultralytics would search folders and time the disk."""
        return []

    def get_labels(self) -> list[dict[str, Any]]:
        """None; ultralytics' own scan would write a cache and repair images."""
        return []

    def set_rectangle(self) -> None:
        """Sort by aspect ratio and give the images of a batch one shape, as ultralytics does."""
        order, self.batch_shapes = rectangles(
            self.labels.shapes, self.batch_size, imgsz=self.imgsz, stride=self.stride, pad=self.pad
        )
        self.labels = self.labels.chosen(np.asarray(self.labels.rows)[order])
        self.im_files = Identities(self.labels)
        self.batch = np.arange(self.ni) // self.batch_size

    def build_transforms(self, hyp: SimpleNamespace) -> Compose:
        """ultralytics' pipeline; also builds the one for the last `close_mosaic` epochs."""
        # With "ram", Mosaic draws partners from the whole set, not from a buffer of recent images.
        self.cache = "ram"
        opened = self._own(self._build(copy.copy(hyp)))
        if self._close_epoch is not None:
            closed = copy.copy(hyp)
            closed.mosaic = closed.copy_paste = closed.mixup = closed.cutmix = 0.0
            self._closed = self._own(self._build(closed))
        return opened

    def _own(self, pipeline: Compose) -> Compose:
        for transform in pipeline.transforms:
            if isinstance(transform, Albumentations) and hasattr(
                transform.transform, "set_random_seed"
            ):
                transform.transform = _KeyedAlbumentations(transform.transform, self._further)
        self._partners.serve(pipeline)
        return quicken(pipeline, self._scratch)

    def _build(self, hyp: SimpleNamespace) -> Compose:
        with quiet_ultralytics():
            return super().build_transforms(hyp)

    def __getitem__(self, item: SampleId | tuple[int, int] | int) -> dict[str, Any]:
        """The sample with this id of an augmented set, or at an index of a plain one.

        Raises:
            UserError: no image of the set can be read.
        """
        with restored_generators():
            return self.sample(item)

    def collated(self, items: Sequence[SampleId] | Sequence[int]) -> dict[str, Any]:
        """Several samples as `collate_fn` joins them.

        Raises:
            UserError: no image of the set can be read.
        """
        with restored_generators():
            if not self.augment:
                return self.collate_fn([self.sample(item) for item in items])
            images = loader_memory(len(items), self.channels, self.imgsz, self.imgsz)
            places = zip(items, images.numpy(), strict=True)
            return self.collate_fn([self.sample(item, out) for item, out in places], images)

    def sample(
        self, item: SampleId | tuple[int, int] | int, out: np.ndarray | None = None
    ) -> dict[str, Any]:
        """As `__getitem__`, but the global generators stay as the sample has left them.

        Args:
            item: the sample's id or index.
            out: (channels, imgsz, imgsz) uint8 that the image of an augmented set is written into.
        """
        at = SampleId(*item) if self.augment else SampleId(0, item)
        self._replaced, self._sources = [], []
        # Albumentations draws from generators of its own, which `seed_generators` does not reach.
        self._further.seed(keyed_seed("albumentations", self.seed, at.epoch, at.index))
        seed_generators("sample", self.seed, at.epoch, at.index)
        self.images.begin(at.block)
        self._partners.begin(at)
        label = self.get_image_and_label(at.index)
        sample = self._augmented(label, at, out) if self.augment else self.transforms(label)
        sample["replaced"] = self._replaced
        sample["sources"] = tuple(self._sources)
        if not self.augment:
            sample["index"] = at.index
        return sample

    def _augmented(
        self, label: dict[str, Any], at: SampleId, out: np.ndarray | None
    ) -> dict[str, Any]:
        closed = self._close_epoch is not None and at.epoch >= self._close_epoch
        transforms = self._closed if closed else self.transforms
        if out is None:
            out = np.empty((self.channels, self.imgsz, self.imgsz), np.uint8)
        sample = transforms({**label, IMAGE_OUT: out})
        if IMAGE_OUT in sample:  # ultralytics' own `Format` does not know it
            out[:] = sample["img"]
            sample["img"] = torch.from_numpy(sample.pop(IMAGE_OUT))
        return sample

    def exclude(self, images: Iterable[str]) -> None:
        """Replace these images by the next ones from now on. Running workers do not see it."""
        excluded = frozenset(images)
        # All names are looked through only if there is one to be found.
        names = enumerate(self.im_files) if excluded else ()
        self._excluded = {place for place, identity in names if identity in excluded}

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """The image and boxes at `index`, or of the next one if it is excluded or unreadable.

        An evaluation set replaces it by a grey image without boxes, so that no image counts twice.
        """
        # The next image in file order, and not a random one: the sample stays a function of its id.
        for offset in range(self.ni):
            place = (index + offset) % self.ni
            if place in self._excluded:
                continue
            try:
                label = self._label(place)
                self._sources.append(label["im_file"])
                return label
            except Unreadable:
                self._replaced.append(self.im_files[place])
                if not self.augment:
                    return self._blank(place)
        left = self.ni - len(self._excluded)
        raise UserError(
            f"none of the {left} images can be read; the first is "
            f"{self.source.place(self.im_files[0])}"
            if left
            else (
                f"all {self.ni} images are excluded, because their values were not finite; see "
                "stability.jsonl"
            )
        )

    def _label(self, place: int) -> dict[str, Any]:
        """What ultralytics' method gives, which copies the label once more."""
        label = self.labels[place]
        del label["shape"]
        label["img"], original, scaled = self.load_image(place)
        label["ori_shape"], label["resized_shape"] = original, scaled
        label["ratio_pad"] = (scaled[0] / original[0], scaled[1] / original[1])
        if self.rect:
            label["rect_shape"] = self.batch_shapes[self.batch[place]]
        return self.update_labels_info(label)

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> tuple:
        """Image `i` scaled to a long side of `imgsz`: (uint8 BGR (h, w, c), original (h, w), scaled
        (h, w)).

        The array may be read-only: it is not copied, because no transform writes into it.
        """
        image, original = self.images[i]
        return image, original, image.shape[:2]

    def _decode(self, i: int) -> Decoded:
        began, row = time.perf_counter(), int(self.labels.rows[i])
        image = self.source.read(row)
        self.decode_seconds += time.perf_counter() - began
        if image.shape[2] != self.channels:
            raise Unreadable(self.im_files[i])
        # A file's own shape, because it may have been replaced since its check.
        original = image.shape[:2] if self.source.side is None else self.labels.shape(i)
        return Decoded(fit(image, self.imgsz), original)

    def _load_all(self) -> None:
        limit = available_memory() * 0.8
        with ThreadPool(8) as pool:
            for i, decoded in enumerate(pool.imap(self._try_decode, range(self.ni))):
                if decoded is not None and not self.images.keep(i, decoded, limit):
                    log.warning("cache=ram: %d of %d images fit into the free memory", i, self.ni)
                    break

    def _try_decode(self, i: int) -> Decoded | None:
        try:
            return self._decode(i)
        except Unreadable:
            return None  # replaced and reported when a sample needs it

    def _blank(self, index: int) -> dict[str, Any]:
        """A grey image without boxes, in the shape of its batch."""
        shape = tuple(int(side) for side in self.batch_shapes[self.batch[index]])
        label = self.labels[index]
        del label["shape"]
        label.update(
            img=np.full((*shape, self.channels), PADDING_GREY, np.uint8),
            cls=label["cls"][:0],
            bboxes=label["bboxes"][:0],
            segments=[],
            ori_shape=shape,
            resized_shape=shape,
            ratio_pad=(1.0, 1.0),
            rect_shape=self.batch_shapes[self.batch[index]],
        )
        return self.update_labels_info(label)

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]], images: Tensor | None = None) -> dict[str, Any]:
        """Join samples: img (b, c, h, w) uint8, cls (N, 1), bboxes (N, 4), batch_idx (N) float32,
        tuples for the rest.

        `replaced` becomes one list for the whole batch.

        Args:
            batch: samples.
            images: their images, if they are in one tensor already.
        """
        joined: dict[str, Any] = {key: tuple(each[key] for each in batch) for key in batch[0]}
        counts = torch.tensor([len(classes) for classes in joined["cls"]])
        joined["batch_idx"] = torch.arange(len(batch)).float().repeat_interleave(counts)
        joined["cls"], joined["bboxes"] = torch.cat(joined["cls"]), torch.cat(joined["bboxes"])
        joined["img"] = torch.stack(joined["img"]) if images is None else images
        joined["replaced"] = [image for each in joined["replaced"] for image in each]
        return joined


class _KeyedAlbumentations:
    """An albumentations pipeline (1.4.21 and later own a generator) that is seeded for each sample.

    This class must not have a `set_random_seed`: ultralytics looks for one, and would seed the
    pipeline once per process.
    """

    def __init__(self, transform: Any, seeds: random.Random) -> None:
        """`seeds` is seeded for every sample before it is called."""
        self._transform, self._seeds = transform, seeds

    def __call__(self, **targets: Any) -> dict[str, Any]:
        self._transform.set_random_seed(self._seeds.getrandbits(32))
        return self._transform(**targets)


def available_memory() -> int:
    """Free bytes of memory for this process: the machine's, or less if its cgroup limits it."""
    free = psutil.virtual_memory().available
    try:
        group = Path("/sys/fs/cgroup")
        used = int((group / "memory.current").read_text())
        return max(min(free, int((group / "memory.max").read_text()) - used), 0)
    except (OSError, ValueError):  # no cgroup v2, or no limit: "max"
        return free


def default_cache_bytes(processes: int) -> int:
    """Bytes of decoded images that each of `processes` loader processes of a host may keep."""
    return min(available_memory() // (8 * max(processes, 1)), 2 << 30)
