"""The frames of a split's videos that are used: which, with what labels, out of which files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from yolods.data.index.block import stat_of
from yolods.data.index.freshness import THREADS
from yolods.data.pack.sample import frame_identity
from yolods.data.source import identities
from yolods.data.spec import SPLITS, DataSpec
from yolods.data.video.labels.label_files import LabelFiles, find_labels
from yolods.data.video.labels.read import VideoLabels, read_labels
from yolods.errors import Faults, UserError

FRAMES_VERSION = 1
"""Version of all that makes samples out of videos and labels; a new one voids packs in the
cache."""


@dataclass(frozen=True)
class FrameSet:
    """The frames of a split that are used."""

    spec: DataSpec
    """The data yaml."""
    videos: tuple[Path, ...]
    """The split's videos, sorted."""
    ids: tuple[str, ...]
    """Their identities."""
    labels: Mapping[Path, LabelFiles]
    """The label files of each, unless `faults` say why there are none."""
    stride: int
    """Frames 0, `stride`, 2 x `stride`, ... are used if they are labelled."""
    faults: tuple[str, ...] = ()
    """Why the frames cannot be used: a line per fault, which `survey` raises with further ones."""

    @classmethod
    def of(cls, spec: DataSpec, split: str, stride: int | None = None) -> FrameSet:
        """The frames of a split that is made of videos.

        Args:
            spec: the data yaml.
            split: 'train', 'val' or 'test'.
            stride: of the training split; None: as the yaml says.

        Raises:
            UserError: a video has been removed since the yaml was read.
        """
        faults = Faults()
        if spec.channels not in (1, 3):
            faults.add(
                f"{spec.yaml}: channels: {spec.channels}, but frames of videos have 3, or 1 if "
                "they are made grey"
            )
        videos = spec.videos(split)
        others = [video for other in SPLITS if other != split for video in spec.videos(other)]
        ids, _ = identities([str(video) for video in videos], spec.root)
        own = spec.video.stride_of(split)
        return cls(
            spec=spec,
            videos=tuple(videos),
            ids=tuple(ids),
            labels=find_labels(videos, faults, others=others),
            stride=stride if stride is not None and split == "train" else own,
            faults=tuple(faults),
        )

    def read(self, place: int, frames: int, shape: tuple[int, int]) -> VideoLabels:
        """The labels of the used frames of a video, with identities; at least one.

        Args:
            place: number of the video in `videos`.
            frames: number of its frames.
            shape: their height and width in pixels.

        Raises:
            UserError: see `read_labels`; or no labelled frame is used.
        """
        keys = self.spec.video
        found = read_labels(
            self.labels[self.videos[place]],
            frames,
            shape,
            base=keys.base,
            first_class=keys.first_class,
            keypoints=self.spec.keypoints,
        )
        used = VideoLabels(problems=list(found.problems))
        for number, pair in found.pairs.items():
            if number % self.stride:
                continue
            if pair.shape is None:
                used.problems += pair.problems
                continue
            pair.id = frame_identity(self.ids[place], number)
            used.pairs[number] = pair
        if not used.pairs:
            raise UserError(self._none_used(place, found))
        return used

    @cached_property
    def digest(self) -> str:
        """32 digits that change with any video, any label file, and how they are used, but not
        with the place of the data set."""
        keys = self.spec.video
        how = (FRAMES_VERSION, self.stride, keys.base, keys.first_class)
        told = blake2b(
            repr((*how, self.spec.keypoints, self.spec.channels)).encode(), digest_size=16
        )
        names, files = zip(*self._files(), strict=True)
        with ThreadPoolExecutor(THREADS) as pool:
            states = pool.map(stat_of, files)
            for name, state in zip(names, states, strict=True):
                told.update(f"\n{name} {state}".encode("utf-8", "surrogateescape"))
        return told.hexdigest()

    def _files(self) -> Iterator[tuple[str, str]]:
        """Every file that samples are made of, with a name that does not tell where it is."""
        for video, identity in zip(self.videos, self.ids, strict=True):
            yield identity, str(video)
            if (labels := self.labels.get(video)) is None:
                continue
            if labels.layout == "sequence":
                yield labels.layout, str(labels.place)
            for number, file in sorted(labels.files.items()):
                yield f"{labels.layout} {number}", str(file)

    def _none_used(self, place: int, found: VideoLabels) -> str:
        video, count = self.videos[place], len(found.pairs)
        if all(number % self.stride for number in found.pairs):
            return (
                f"{video}: none of its {count} labelled frames is one of every {self.stride}th; "
                "choose another stride"
            )
        first = next(iter(found.problems), None) or next(
            problem for pair in found.pairs.values() for problem in pair.problems
        )
        return f"{video}: no frame can be used; the first problem: {first}"
