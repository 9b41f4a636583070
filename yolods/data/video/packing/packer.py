"""Packs the frames of a split's videos: decoded one after the other, encoded in threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from yolods.data.index.block import stat_of
from yolods.data.pack.manifest import PackRecord, pack_index
from yolods.data.pack.sample import Sample, frame_of, store
from yolods.data.pack.writer import PackWriter
from yolods.data.verify import CheckedPair, Problem
from yolods.data.video.frames import Frame, Video, VideoError
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.survey import VideoFacts, as_channels, estimated_pack_bytes
from yolods.errors import Faults, UserError
from yolods.system.humanize import plural
from yolods.system.workers import in_threads

log = logging.getLogger(__name__)


class PackableFrames:
    """A `Packable` of the frames of a split's videos."""

    def __init__(self, frames: FrameSet, facts: Sequence[VideoFacts]) -> None:
        """
        Args:
            frames: the frames that are used.
            facts: the result of `survey`.
        """
        self.further: Mapping[str, Any] = frames_settings(frames)
        self.problems: Sequence[Problem] = ()
        """What was skipped, and what the videos lack; known after `pack`."""
        self._frames, self._facts = frames, facts

    def __len__(self) -> int:
        return sum(each.used for each in self._facts)

    @property
    def left_out(self) -> str:
        """See `Packable`."""
        return plural(len(self.problems), "problem") if self.problems else ""

    def estimated_bytes(self) -> int:
        """See `Packable`."""
        return estimated_pack_bytes(self._facts)

    def pack(self, writer: PackWriter, workers: int, seen: Callable[[int], Any]) -> PackRecord:
        """See `Packable`. What the videos lack is logged.

        Raises:
            UserError: one line for each fault of each video; nothing is left of the pack then.
            OSError: the disk is full.
        """
        behind = writer.last_finished()
        if writer.complete:
            seen(len(self))
        else:
            self._add_all(writer, _Reading(self._frames, self._facts, behind, seen), workers)
        record = writer.finish()
        self.problems = [problem for _, problem in pack_index(writer.folder).problems()]
        return record

    def _add_all(self, writer: PackWriter, reading: _Reading, workers: int) -> None:
        work = partial(store, encoding=writer.encoding, channels=writer.channels)
        with closing(in_threads(work, reading.samples(), workers)) as found:
            for stored in found:
                writer.add(stored)
                reading.seen(1)
        if reading.faults:
            writer.discard()
        reading.faults.raise_if_any()
        for line in reading.warnings:
            log.warning("%s", line)


def frames_settings(frames: FrameSet) -> dict[str, Any]:
    """What decides about the samples, for `PackWriter`."""
    return {"stride": frames.stride, "videos_and_labels": frames.digest}


class _Reading:
    """Makes the samples of all videos, and notes what is wrong with them."""

    def __init__(
        self,
        frames: FrameSet,
        facts: Sequence[VideoFacts],
        behind: str | None,
        seen: Callable[[int], Any],
    ) -> None:
        """
        Args:
            frames: the frames that are used.
            facts: of each video.
            behind: the identity of the last frame that needs no sample; None: all need one.
            seen: is called with numbers of frames that are done.
        """
        self.faults = Faults()
        self.warnings: list[str] = []
        self.seen = seen
        self._frames, self._facts = frames, facts
        video, self._after = (frames.ids[0], -1) if behind is None else frame_of(behind)
        self._first = frames.ids.index(video)

    def samples(self) -> Iterator[Sample]:
        """The samples in their order. After a fault there are none, but all videos are read."""
        self.seen(sum(each.used for each in self._facts[: self._first]))
        # An earlier call has read those before to their ends, and found no fault.
        for place in range(self._first, len(self._frames.videos)):
            after = self._after if place == self._first else -1
            with self.faults.caught():
                for number, sample in self._of_video(place):
                    if number <= after:
                        self.seen(1)
                    elif not self.faults:
                        yield sample

    def _of_video(self, place: int) -> Iterator[tuple[int, Sample]]:
        """The used frames of a video with their numbers; what it lacks is noted at the last one.

        Raises:
            UserError: the video or its labels are faulty; samples before are to be discarded.
        """
        frames, facts = self._frames, self._facts[place]
        video, labels = Video(frames.videos[place]), frames.read(place, facts.frames, facts.shape)
        held: tuple[int, Sample] | None = None
        for frame in video.frames(frames.stride):
            if (pair := labels.pairs.get(frame.number)) is None:
                continue
            if held is not None:
                yield held
            held = frame.number, self._sample(place, frame, pair)
        if video.count < facts.frames:  # labels were compared with more frames than there are
            frames.read(place, video.count, facts.shape)
        if held is None:
            raise UserError(f"{video.path}: none of its labelled frames can be decoded")
        yield held[0], self._noted(held[1], video, labels.problems)

    def _sample(self, place: int, frame: Frame, pair: CheckedPair) -> Sample:
        frames, video = self._frames, self._frames.videos[place]
        if frame.image.shape[:2] != self._facts[place].shape:
            (height, width), first = frame.image.shape[:2], self._facts[place].shape
            raise VideoError(
                f"{video}: frame {frame.number} has {width}x{height} pixels, and the first one "
                f"{first[1]}x{first[0]}; cut the video where its size changes"
            )
        image = as_channels(frame.image, frames.spec.channels)
        stat = (*stat_of(str(video)), *stat_of(pair.label_file))
        # A line of a sequence's text is none of a label file in the pack.
        return Sample(pair, image, stat, group=place, own_problems=False)

    def _noted(self, sample: Sample, video: Video, problems: Sequence[Problem]) -> Sample:
        """The sample with the problems of its whole video."""
        self.warnings += video.warnings
        name = str(video.path)
        lacks = [Problem(name, None, line.removeprefix(f"{name}: ")) for line in video.warnings]
        check = sample.check
        return replace(sample, check=replace(check, problems=[*check.problems, *problems, *lacks]))
