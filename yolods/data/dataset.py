"""ultralytics' data set and augmentation, with samples that are a pure function of (seed, epoch,
index).

It differs from YOLODataset in four ways. It receives a finished `Scan` and never writes a file.
Random numbers are keyed by the sample, so that ranks, workers and restarts do not change them.
Mosaic partners come from the whole set, and not from the images that a process happened to load
last. A file that disappears is replaced and reported.
"""

import copy
import logging
import random
import time
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from ultralytics.data.augment import Albumentations, Compose
from ultralytics.data.dataset import YOLODataset

from yolods.compat import quiet_ultralytics
from yolods.config.deepspeed.batch import DEFAULT_BATCH
from yolods.data.index.labels import Identities
from yolods.data.resize import fit, rectangles
from yolods.data.sampler import SampleId, keyed_generators, keyed_seed
from yolods.data.scan import Scan
from yolods.data.source import Unreadable
from yolods.errors import UserError

EVAL_PAD = 0.5  # in strides, as in ultralytics' validation
PADDING_GREY = 114

log = logging.getLogger(__name__)


# Wide: half of its methods override ultralytics' own by name.
class DetectionSet(YOLODataset):
    """Images and boxes of one split.

    With `augment`, items are augmented squares, addressed by a `SampleId` (epoch, index). Without
    it, they are addressed by an index and letterboxed to the shape of their group of `eval_batch`.
    An item is a dictionary: img (3, h, w) uint8 RGB, cls (n, 1) and bboxes (n, 4) float32
    normalised xywh, batch_idx (n), im_file, ori_shape, resized_shape, ratio_pad, sources (all
    images that are part of it), replaced (images that could not be read) and, for evaluation,
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
        self.cache_bytes = default_cache_bytes(1) if cache_bytes is None else cache_bytes
        self.source = scan.source
        self._decoded: dict[int, tuple[np.ndarray, tuple[int, int]]] = {}
        self._decoded_bytes = 0
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
        opened = self._keyed(self._build(copy.copy(hyp)))
        if self._close_epoch is not None:
            closed = copy.copy(hyp)
            closed.mosaic = closed.copy_paste = closed.mixup = closed.cutmix = 0.0
            self._closed = self._keyed(self._build(closed))
        return opened

    def _keyed(self, pipeline: Compose) -> Compose:
        for transform in pipeline.transforms:
            if isinstance(transform, Albumentations) and hasattr(
                transform.transform, "set_random_seed"
            ):
                transform.transform = _KeyedAlbumentations(transform.transform, self._further)
        return pipeline

    def _build(self, hyp: SimpleNamespace) -> Compose:
        with quiet_ultralytics():
            return super().build_transforms(hyp)

    def __getitem__(self, item: SampleId | tuple[int, int] | int) -> dict[str, Any]:
        """The sample at (epoch, index) of an augmented set, or at an index of a plain one.

        Raises:
            UserError: no image of the set can be read.
        """
        epoch, index = item if self.augment else (0, item)
        closed = self._close_epoch is not None and epoch >= self._close_epoch
        self._replaced, self._sources = [], []
        # Albumentations draws from generators of its own, which `keyed_generators` does not reach.
        self._further.seed(keyed_seed("albumentations", self.seed, epoch, index))
        with keyed_generators("sample", self.seed, epoch, index):
            transforms = self._closed if closed else self.transforms
            sample = transforms(self.get_image_and_label(index))
        sample["replaced"] = self._replaced
        sample["sources"] = tuple(self._sources)
        if not self.augment:
            sample["index"] = index
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
                label = super().get_image_and_label(place)
                self._sources.append(self.im_files[place])
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

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> tuple:
        """Image `i` scaled to a long side of `imgsz`: (uint8 BGR (h, w, c), original (h, w), scaled
        (h, w)).

        The array is a copy, because augmentation writes into it.
        """
        if i not in self._decoded:
            decoded = self._decode(i)
            if self._decoded_bytes + decoded[0].nbytes > self.cache_bytes:
                return *decoded, decoded[0].shape[:2]
            self._keep(i, decoded)
        image, original = self._decoded[i]
        return image.copy(), original, image.shape[:2]

    def _decode(self, i: int) -> tuple[np.ndarray, tuple[int, int]]:
        began, row = time.perf_counter(), int(self.labels.rows[i])
        image = self.source.read(row)
        self.decode_seconds += time.perf_counter() - began
        if image.shape[2] != self.channels:
            raise Unreadable(self.im_files[i])
        # A file's own shape, because it may have been replaced since its check.
        original = image.shape[:2] if self.source.side is None else self.labels.shape(i)
        return fit(image, self.imgsz), original

    def _keep(self, i: int, decoded: tuple[np.ndarray, tuple[int, int]]) -> None:
        """Cache an image. None is evicted, which under random access would not pay."""
        self._decoded[i] = decoded
        self._decoded_bytes += decoded[0].nbytes

    def _load_all(self) -> None:
        free = available_memory()
        with ThreadPool(8) as pool:
            for i, decoded in enumerate(pool.imap(self._try_decode, range(self.ni))):
                if decoded is None:
                    continue
                if self._decoded_bytes + decoded[0].nbytes > free * 0.8:
                    log.warning("cache=ram: %d of %d images fit into the free memory", i, self.ni)
                    break
                self._keep(i, decoded)

    def _try_decode(self, i: int) -> tuple[np.ndarray, tuple[int, int]] | None:
        try:
            return self._decode(i)
        except Unreadable:
            return None  # replaced and reported when a sample needs it

    def _blank(self, index: int) -> dict[str, Any]:
        """A grey image without boxes, in the shape of its batch."""
        shape = tuple(int(side) for side in self.batch_shapes[self.batch[index]])
        label = copy.deepcopy(self.labels[index])
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
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples: img (b, 3, h, w) uint8, cls (N, 1), bboxes (N, 4), batch_idx (N), tuples
        for the rest.

        `replaced` becomes one list for the whole batch.
        """
        stacked = YOLODataset.collate_fn(batch)
        stacked["replaced"] = [file for files in stacked["replaced"] for file in files]
        return stacked


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
